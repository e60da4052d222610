"""The memory of a model: weights, each clip in training and in inference, and frozen networks.

Clips are measured in a micro-batch without numbers, so that no layer has to be described here, and no run
tries batches until one fits. Without the clip of the next micro-batch, this gives 99 to 101 % of the bytes of
a clip on an H100 in bf16 (benchmarks/performance.md) for EVEREST and views, 89 to 95 % for VideoMAE and 123 %
with checkpointing, in 2 seconds.

B clips of a micro-batch, C channels, T frames, H W pixels, N tokens, D dimensions of a code, P values of a
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from everest.config.settings import TrainedSection
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.selection import Strategy
from everest.methods.targets import mean_squared_error
from everest.models.base import PretrainingModel
from everest.models.block import Blocks
from everest.models.clip_spec import ModelSpec
from everest.models.mae import AutoencoderSpec, MaskedAutoencoder
from everest.models.partial import LowRank, freeze_and_adapt, freeze_layers
from everest.models.spec import Transformer, teacher_in_step
from everest.models.student import Student
from everest.system.compute import peak_bytes
from everest.tokenizer.spec import TokenizerSpec

WEIGHT_BYTES: Final = 4  # weights, gradients and both moments of AdamW are float32 in every precision

_training_bytes: dict[tuple[str, int, int], int] = {}  # measured in this process


def training_bytes(
    spec: ModelSpec | TokenizerSpec, bytes_per_value: int, section: TrainedSection | None = None
) -> int:
    """Measure the bytes that one clip (for a tokenizer, one window) takes in a training step.

    The peak is before the blocks, when the importance of the tokens is measured, or at the end of the forward
    pass, with all that is saved for the backward pass. Weights and `frozen_bytes`, which do not depend on the
    number of clips, are not included.

    Args:
        section: of the stage, whose frozen layers save nothing; None: none are frozen.
    """
    num_frozen_layers = 0
    if section is not None and isinstance(spec, ModelSpec):
        num_frozen_layers = section.frozen_layers(spec.model.backbone_size.depth)
    key = (repr(spec), bytes_per_value, num_frozen_layers)
    if key in _training_bytes:
        return _training_bytes[key]
    if isinstance(spec, TokenizerSpec):
        with torch.device("meta"):
            model = spec.build().train()

        def run() -> object:
            clip = torch.empty(1, 3, spec.chunk, *spec.size)  # (1, C, T, H, W)
            return model.decoder(model.encoder(model.scaled(clip)))

        taken = peak_bytes(model, run, bytes_per_value=bytes_per_value, with_grad=True)
    else:
        taken = bytes_per_clip(spec, bytes_per_value, trains=True, num_frozen_layers=num_frozen_layers)
        teacher = teacher_in_step(spec)
        if teacher is not None:  # it takes a clip in windows
            taken += spec.grid.t // teacher.grid.t * bytes_per_clip(teacher, bytes_per_value, trains=False)
    _training_bytes[key] = taken
    return taken


def bytes_per_clip(spec: ModelSpec, bytes_per_value: int, *, trains: bool, num_frozen_layers: int = 0) -> int:
    """Measure the bytes of one clip.

    Args:
        trains: include a backward pass, of all but the first `num_frozen_layers` layers.
    """
    # Tensors on meta have no values, which a strategy of another package may read; a tokenizer scores a few
    # clips at a time.
    with_importance = not (spec.selection.needs_tokenizer or spec.selection.is_external)
    model = model_on_meta(spec, with_importance=with_importance).train(trains)
    freeze_layers(model.encoder, num_frozen_layers)
    if spec.checkpointing:  # one block at a time keeps its activations
        for blocks in model.modules():
            if isinstance(blocks, Blocks):
                blocks[-1].eval()
    clips = spec.compared_views if trains else 1
    frames = spec.candidate_frames if trains else spec.frames

    def run() -> object:
        clip = torch.empty(clips, spec.channels, frames, *spec.size, dtype=torch.uint8)  # (B, C, T, H, W)
        next_clip = torch.empty_like(clip) if trains else None  # the loader copies it during the step
        if trains and isinstance(model, PretrainingModel):
            noise = torch.empty(clips, model.noise_layout.total)
            # Time indices are sampled from candidates by importance; without it, the model takes a clip.
            candidates = clip if with_importance else clip[:, :, : spec.frames]
            return run_on_meta(model, candidates, noise), clip, next_clip
        normalized, noise = spec.pixels.normalize(clip), torch.empty(clips, spec.grid.num_tokens)
        augmented = normalized.clone() if trains else normalized  # parts erased, clips mixed
        return model(augmented, noise=noise), normalized, clip, next_clip

    return peak_bytes(model, run, bytes_per_value=bytes_per_value, with_grad=trains) // clips


def frozen_bytes(spec: ModelSpec) -> int:
    """Measure the bytes of the frozen tokenizer or teacher in a training step, for any number of clips.

    Its weights, and of a tokenizer the values of the few windows that it codes at a time, while all that the
    model saves for the backward pass is alive. 0 if a step runs neither.
    """
    if teacher := teacher_in_step(spec):
        return WEIGHT_BYTES * count_weights(teacher).total
    if not isinstance(spec, AutoencoderSpec) or spec.tokenizer_in_step is None:
        return 0
    model = model_on_meta(spec)
    assert isinstance(model, MaskedAutoencoder)
    assert model.tokenizer is not None
    frozen_tokenizer, tokenizer = model.tokenizer, model.tokenizer.tokenizer

    def run() -> object:
        clip = torch.empty(1, spec.channels, spec.frames, *spec.size, dtype=torch.uint8)  # (1, C, T, H, W)
        clips = clip.expand(tokenizer.clips_at_once(clip), -1, -1, -1, -1)  # (B, C, T, H, W)
        return frozen_tokenizer.scores(clips), frozen_tokenizer.latent(clips)  # (B, N), (B, N, D)

    # Norms are float32 in any precision on a GPU, but not on a CPU.
    coding_bytes = peak_bytes(tokenizer, run, bytes_per_value=4, with_grad=False)
    return WEIGHT_BYTES * count_weights(spec.tokenizer_in_step.settings).total + coding_bytes


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Numbers of weights."""

    total: int  # adapters included
    trained: int  # weights that training changes; the others are frozen
    adapted: int  # weights of the matrices that have an adapter

    def state_bytes(self, *, training: bool, bytes_per_value: int = WEIGHT_BYTES) -> dict[str, int]:
        """Bytes of the weights, and in training of gradients and AdamW's two moments of the trained ones.

        In float32 an adapted matrix is kept for the backward pass in addition to its two parts. In lower
        precision every weight has a copy, adapted or not, which is not counted.
        """
        trained = WEIGHT_BYTES * self.trained if training else 0
        copies = WEIGHT_BYTES * self.adapted if training and bytes_per_value == WEIGHT_BYTES else 0
        return {"weights": WEIGHT_BYTES * self.total + copies, "gradients": trained, "moments": 2 * trained}


def count_weights(spec: ModelSpec | TokenizerSpec, section: TrainedSection | None = None) -> WeightCounts:
    """Count the weights of a model, which get shapes but no memory; without a section none is frozen."""
    with torch.device("meta"):
        model = (spec if isinstance(spec, TokenizerSpec) else spec.without_files()).build()
        if section is not None:
            freeze_and_adapt(model, section)
    weights = list(model.parameters())
    return WeightCounts(
        total=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        adapted=sum(layer.original.numel() for layer in model.modules() if isinstance(layer, LowRank)),
    )


@dataclass(frozen=True, kw_only=True)
class WithoutImportance(Strategy):
    """Chooses as many tokens as another strategy; noise stands for their importance."""

    original: Strategy

    @property
    def uses_importance(self) -> bool:
        return False

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        return self.original(grid, importance=noise, noise=noise)


def model_on_meta(spec: ModelSpec, *, with_importance: bool = True) -> Transformer:
    """Build a spec's model on the meta device, for `run_on_meta`.

    Args:
        with_importance: whether its strategy computes the importance of tokens.
    """
    with torch.device("meta"):
        model = spec.without_files().build()
    if not with_importance:
        model.strategy = WithoutImportance(original=spec.selection)
    return model


def run_on_meta(model: Transformer, frames: Tensor, noise: Tensor) -> object:
    """Run a model without the values and the loss of its target, which may need numbers."""
    if not isinstance(model, MaskedAutoencoder | Student):
        return model(frames, noise=noise)
    width = model.encoder.width
    if isinstance(model, MaskedAutoencoder):
        model.targets.loss, width = mean_squared_error, model.targets.width
    values = frames.new_empty(1, 1, width, dtype=torch.float32)  # (1, 1, P)
    return model(frames, noise=noise, values=values.expand(len(frames), model.encoder.grid.num_tokens, -1))
