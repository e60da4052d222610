"""Estimates of the memory of a model: of each clip in training and in inference, and of a frozen tokenizer.

They are computed on shapes. docs/performance.md compares them with counted bytes.
"""

from __future__ import annotations

from math import prod

from everest.methods.ranked import FrameDifference, LearnedImportance, RedundancyRobust
from everest.models.block import activation_bytes
from everest.models.cost import WEIGHT_BYTES, count_weights, embedded_positions
from everest.models.spec import ModelSpec
from everest.tokenizer.chunks import coding_bytes

SOFTMAX_COPIES = 2.5  # tensors of tokens x tokens x heads that unfused attention saves


def training_bytes(spec: ModelSpec, bytes_per_value: int, *, frozen_layers: int = 0) -> int:
    """Estimate the bytes that one clip takes in a training step, at the larger of two peaks.

    The first is before the blocks, when the importance of the tokens is measured; the second is the end of
    the forward pass, with all that is saved for the backward pass. Weights and `tokenizer_bytes`, which do
    not depend on the number of clips, are not included.

    Args:
        frozen_layers: of the encoder (everest.models.partial). Frozen blocks compute one at a time.
    """
    stacks = spec.stacks
    learning = max(1, stacks[0].depth - max(0, frozen_layers - 1))
    stacks[0] = stacks[0]._replace(depth=learning)
    saved = activation_bytes(
        stacks,
        other_bytes=_clip_bytes(spec) + _target_bytes(spec, bytes_per_value),
        bytes_per_value=bytes_per_value,
        checkpointing=spec.checkpointing,
    )
    # A cosine and a sine per channel of a head, for all blocks of a stack.
    turned = stacks if spec.model.positions == "rotary" else stacks[: spec.model.rotary != "none"]
    saved += sum(2 * 4 * stack.tokens * stack.width // stack.heads for stack in turned)
    if spec.model.norm_before and not frozen_layers:
        saved += 4 * stacks[0].tokens * stacks[0].width  # its input
    if spec.kind == "classifier" and spec.model.pooling == "class-attention":
        # Per token: the input of the norm in float32, its output, which keys and values are computed from,
        # the keys and the values.
        saved += stacks[0].tokens * stacks[0].width * (4 + 4 * bytes_per_value)
    if not frozen_layers:  # the inputs of the embedding's later convolutions
        positions = sum(embedded_positions(spec.model)[:-1])
        saved += stacks[0].tokens * positions * stacks[0].width * bytes_per_value
    return max(saved, _clip_bytes(spec) + _importance_bytes(spec, bytes_per_value))


def tokenizer_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes of the frozen tokenizer in a training step, for any number of clips.

    Its weights, and the values of the few windows that it codes at a time, while all that the model saves for
    the backward pass is alive. 0 if a step runs no tokenizer.
    """
    if spec.tokenizer is None or not spec.runs_tokenizer:
        return 0
    tokenizer = spec.tokenizer.settings
    coding = coding_bytes(
        tokenizer.config,
        window=tokenizer.window,
        frames=spec.frames,
        size=spec.size,
        bytes_per_value=bytes_per_value,
    )
    return WEIGHT_BYTES * count_weights(tokenizer).total + coding


def _clip_bytes(spec: ModelSpec) -> int:
    """The bytes of a clip in a training step: as uint8, the next one, which is copied meanwhile, and floats.

    Floats are necessary for fine-tuning, which erases and mixes whole clips, and for differences, which are
    of normalized frames. A tokenizer makes floats of a few clips at a time (`tokenizer_bytes`).
    """
    values = spec.channels * spec.offered_frames * spec.size[0] * spec.size[1]
    stays_bytes = spec.kind == "pretrain" and spec.model.input == "frames"
    return (2 if stays_bytes else 2 + 4 + 4) * values


def _importance_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """The bytes that measuring the importance of one clip's tokens takes, in addition to the clip itself.

    By pixels: three copies of the frames in float32. By embedding: the changes of the pixels, for several
    convolutions in float32 as well, and in float32 the outputs of two successive convolutions, over all
    tokens that have a slice before them. A tokenizer scores a few clips at a time (`tokenizer_bytes`).
    """
    selection, per_slice = spec.selection, spec.grid.per_slice
    tokens = spec.offered_frames // spec.model.tubelet[0] * per_slice
    score = selection.score if isinstance(selection, LearnedImportance) else None
    values = spec.channels * prod(spec.model.tubelet)  # of a token
    if score == "frame-difference" or isinstance(selection, FrameDifference):
        return tokens * 3 * 4 * values
    if score != "embedding-distance" and not isinstance(selection, RedundancyRobust):
        return 0
    positions = embedded_positions(spec.model)
    changes = values * (bytes_per_value + (4 if len(positions) > 1 else 0))
    outputs = 4 * spec.model.backbone_size.width * sum(positions[:2])
    return (tokens - per_slice) * (changes + outputs)


def _target_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """The bytes of the prediction in its own type and in float32, of the targets and of the errors."""
    if spec.kind != "pretrain":
        return 0
    encoder, decoder = spec.stacks
    predicted = decoder.tokens - encoder.tokens + spec.model.num_prefix
    return predicted * spec.target_width * (bytes_per_value + 3 * 4)


def inference_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes of one clip without a backward pass: the values of one encoder block at a time."""
    values = spec.channels * spec.frames * spec.size[0] * spec.size[1]
    return activation_bytes(
        [spec.stacks[0]._replace(depth=1)],
        other_bytes=9 * values,  # as uint8, twice as float32
        bytes_per_value=bytes_per_value,
        checkpointing=False,
    )


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes that unfused attention saves in addition: tokens x tokens per head and block."""
    squares = sum(stack.depth * stack.heads * stack.tokens**2 for stack in spec.stacks)
    return int(SOFTMAX_COPIES * bytes_per_value * squares)
