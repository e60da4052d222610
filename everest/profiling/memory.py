"""What a model and a clip take of memory: estimates, so that a run can be planned without starting it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everest.build import ModelSpec
from everest.errors import RecipeError
from everest.plan import activation_bytes

WEIGHT_BYTES = 4  # weights, gradients and both moments of AdamW are float32 in every precision
SOFTMAX_COPIES = 2.5  # tensors of tokens x tokens x heads that an attention which is not fused keeps


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How many tokens of a clip there are, survive selection, are encoded, and are predicted."""

    total: int
    kept: int
    visible: int
    target: int


def count_tokens(spec: ModelSpec) -> Tokens:
    """The counts of a spec's selection, which are the same for every clip.

    Raises:
        RecipeError: nothing is left to encode, or in pre-training to predict.
    """
    grid = spec.grid
    noise = torch.rand(1, grid.num_tokens, generator=torch.Generator().manual_seed(0))
    chosen = spec.selection(grid, importance=noise, noise=noise)
    visible, target = chosen.visible.size(1), chosen.target.size(1)
    scored = int(chosen.scored().sum())
    if visible == 0 or (spec.kind == "pretrain" and scored == 0):
        what = "encode" if visible == 0 else "predict"
        raise RecipeError(f"{spec.selection.strategy}: of {grid.num_tokens} tokens none is left to {what}")
    return Tokens(total=grid.num_tokens, kept=visible + scored, visible=visible, target=target)


def model_state(parameters: int, *, training: bool) -> dict[str, int]:
    """Bytes of weights, and in training of gradients and of AdamW's two moments."""
    weights = WEIGHT_BYTES * parameters
    return {
        "weights": weights,
        "gradients": weights if training else 0,
        "moments": 2 * weights if training else 0,
    }


def inference_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """What one clip takes at most when nothing is kept for a backward pass: one block's values (estimate)."""
    tokens, size = count_tokens(spec), spec.model.backbone_size
    return activation_bytes(
        [(1, tokens.visible, size.width)],
        clip_values=3 * spec.frames * spec.size[0] * spec.size[1],
        bytes_per_value=bytes_per_value,
        checkpointing=False,
    )


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """What an attention that is not fused keeps beside: tokens x tokens for every head and block."""
    tokens, size = count_tokens(spec), spec.model.backbone_size
    squares = size.depth * size.heads * tokens.visible**2
    if spec.kind == "pretrain":
        squares += spec.model.decoder_depth * size.decoder_heads * (tokens.visible + tokens.target) ** 2
    return int(SOFTMAX_COPIES * bytes_per_value * squares)
