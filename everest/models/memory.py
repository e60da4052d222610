"""Estimates of a model's memory: weights, each clip in training and in inference, and a frozen tokenizer.

They are computed on shapes. docs/performance.md compares them with counted bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch

from everest.methods.learned import LearnedImportance
from everest.methods.ranked import ByEmbedding, FrameDifference
from everest.models.cost import Stack, embedded_positions, stacks_of
from everest.models.lora import LowRank
from everest.models.partial import Stage, choose_trained
from everest.models.spec import ModelSpec
from everest.tokenizer.chunks import coding_bytes
from everest.tokenizer.spec import TokenizerSpec

WEIGHT_BYTES = 4  # weights, gradients and both moments of AdamW are float32 in every precision
SOFTMAX_COPIES = 2.5  # tensors of tokens x tokens x heads that unfused attention saves


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Numbers of weights."""

    total: int  # adapters included
    trained: int  # in training; the others are frozen
    adapted: int  # of the matrices that have an adapter

    def state_bytes(self, *, training: bool, bytes_per_value: int = WEIGHT_BYTES) -> dict[str, int]:
        """Bytes of the weights, and in training of gradients and AdamW's two moments of the trained ones.

        In float32 an adapted matrix is kept for the backward pass in addition to its two parts. In lower
        precision every weight has a copy, adapted or not, which is not counted.
        """
        trained = WEIGHT_BYTES * self.trained if training else 0
        copies = WEIGHT_BYTES * self.adapted if training and bytes_per_value == WEIGHT_BYTES else 0
        return {
            "weights": WEIGHT_BYTES * self.total + copies,
            "gradients": trained,
            "moments": 2 * trained,
        }


def count_weights(spec: ModelSpec | TokenizerSpec, stage: Stage | None = None) -> WeightCounts:
    """Count the weights of a model, which get shapes but no memory; without a stage none is frozen."""
    blank = spec if isinstance(spec, TokenizerSpec) else spec.without_files()
    with torch.device("meta"):
        model = blank.build()
        if stage is not None:
            choose_trained(model, stage)
    adapters = (module for module in model.modules() if isinstance(module, LowRank))
    return WeightCounts(
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        adapted=sum(adapter.b.size(0) * adapter.a.size(1) for adapter in adapters),
    )


def activation_bytes(
    stacks: Iterable[Stack], *, other_bytes: int, bytes_per_value: int, checkpointing: bool
) -> int:
    """Estimate the bytes that a forward pass of one clip saves for the backward pass, to about a tenth.

    A block with fused attention saves 7 values per token and channel: the inputs of both norms, which are
    float32 in any precision, q, k, v and the attention's output; one is for small tensors. Its MLP saves the
    inputs of its activation and of its norm. The outputs of norms and activations are recomputed. With
    checkpointing every block saves its input only, and one block at a time saves all values.

    Args:
        other_bytes: of a clip outside of the blocks.
    """
    total = other_bytes
    for stack in stacks:
        depth, tokens, width = stack.depth, stack.tokens, stack.width
        of_mlp = stack.mlp_channels * bytes_per_value + 4 * stack.mlp_width * (stack.mlp == "normed-swiglu")
        block = tokens * (width * (2 * 4 + 5 * bytes_per_value) + of_mlp)
        total += depth * tokens * width * 4 + block if checkpointing else depth * block
    return total


def training_bytes(spec: ModelSpec, bytes_per_value: int, *, frozen_layers: int = 0) -> int:
    """Estimate the bytes that one clip takes in a training step, at the larger of two peaks.

    The first is before the blocks, when the importance of the tokens is measured; the second is the end of
    the forward pass, with all that is saved for the backward pass. Weights and `frozen_bytes`, which do
    not depend on the number of clips, are not included.

    Args:
        frozen_layers: of the encoder (everest.models.partial). Frozen blocks compute one at a time.
    """
    stacks = stacks_of(spec)
    learning = max(1, stacks[0].depth - max(0, frozen_layers - 1))
    stacks[0] = stacks[0]._replace(depth=learning)
    saved = activation_bytes(
        stacks,
        other_bytes=_clip_bytes(spec) + _target_bytes(spec, bytes_per_value),
        bytes_per_value=bytes_per_value,
        checkpointing=spec.checkpointing,
    )
    if spec.camera:  # one more clip for each, or for each video
        encoded = activation_bytes(
            stacks[:1],
            other_bytes=_clip_bytes(spec),
            bytes_per_value=bytes_per_value,
            checkpointing=spec.checkpointing,
        )
        saved += encoded // (1 if spec.views is None else spec.views.number)
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


def frozen_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes of the frozen tokenizer or teacher in a training step, for any number of clips.

    Its weights, and of a tokenizer the values of the few windows that it codes at a time, while all that the
    model saves for the backward pass is alive. 0 if a step runs neither.
    """
    teacher = spec.run_teacher
    if teacher is not None:
        return WEIGHT_BYTES * count_weights(teacher).total
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
    of normalized frames. A tokenizer makes floats of a few clips at a time (`frozen_bytes`).
    """
    values = spec.channels * spec.offered_frames * spec.size[0] * spec.size[1]
    stays_bytes = spec.kind == "pretrain" and spec.model.input == "frames"
    return (2 if stays_bytes else 2 + 4 + 4) * values


def _importance_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """The bytes that measuring the importance of one clip's tokens takes, in addition to the clip itself.

    By pixels: three copies of the frames in float32. By embedding: the changes of the pixels, for several
    convolutions in float32 as well, and in float32 the outputs of two successive convolutions, over all
    tokens that have a slice before them. A tokenizer scores a few clips at a time (`frozen_bytes`).
    """
    selection, per_slice = spec.selection, spec.grid.per_slice
    tokens = spec.offered_frames // spec.model.tubelet[0] * per_slice
    score = selection.score if isinstance(selection, LearnedImportance) else None
    values = spec.channels * prod(spec.model.tubelet)  # of a token
    if score == "frame-difference" or isinstance(selection, FrameDifference):
        return tokens * 3 * 4 * values
    if score != "embedding-distance" and not isinstance(selection, ByEmbedding):
        return 0
    positions = embedded_positions(spec.model)
    changes = values * (bytes_per_value + (4 if len(positions) > 1 else 0))
    outputs = 4 * spec.model.backbone_size.width * sum(positions[:2])
    return (tokens - per_slice) * (changes + outputs)


def _target_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """The bytes of the prediction in its own type and in float32, of the targets and of the errors."""
    if not spec.is_autoencoder:
        return 0
    encoder, decoder = stacks_of(spec)
    predicted = decoder.tokens - encoder.tokens + spec.model.num_prefix
    own, teacher = predicted * spec.target_width * (bytes_per_value + 3 * 4), spec.run_teacher
    if teacher is None:
        return own
    return own + spec.grid.t // teacher.grid.t * inference_bytes(teacher, bytes_per_value)


def inference_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes of one clip without a backward pass: the values of one encoder block at a time."""
    values = spec.channels * spec.frames * spec.size[0] * spec.size[1]
    return activation_bytes(
        [stacks_of(spec)[0]._replace(depth=1)],
        other_bytes=9 * values,  # as uint8, twice as float32
        bytes_per_value=bytes_per_value,
        checkpointing=False,
    )


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes that unfused attention saves in addition: tokens x tokens per head and block."""
    squares = sum(stack.depth * stack.heads * stack.tokens**2 for stack in stacks_of(spec))
    return int(SOFTMAX_COPIES * bytes_per_value * squares)
