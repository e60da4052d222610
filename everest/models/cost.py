"""The cost of a model: tokens and multiply-accumulates of one clip, counted on tensors without numbers.

Multiply-accumulates (MACs) follow the convention of fvcore, which the EVEREST and VideoMAE papers print as
"GFLOPs": the weights of Conv3d and Linear, the two products of attention, and LayerNorm at 5 per element; no
biases, rotations, softmax, GELU, gates, additions, loss, or selection of tokens. As in the official code,
the tubelet embedding counts for all tokens, including those that are left out, and every block counts for all
its tokens; what this program saves beyond that is not subtracted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from everest.errors import RecipeError
from everest.models.block import Block, last_tokens
from everest.models.clip_spec import ClipSpec, ModelSpec, PretrainSpec
from everest.models.image_classifier import PixelSpec
from everest.models.mae import AutoencoderSpec
from everest.models.memory import model_on_meta, run_on_meta
from everest.models.spec import teacher_in_step
from everest.models.view_model import ViewSpec

NORM_OPERATIONS: Final = 5  # fvcore: per element of a LayerNorm
_NORM: Final = torch.ops.aten.native_layer_norm
_OF_NORM: Final = {_NORM: lambda shape, *args, **options: 2 * NORM_OPERATIONS * prod(shape)}
_LINEAR: Final = (torch.ops.aten.mm, torch.ops.aten.addmm)  # all other products belong to attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Macs:
    """Multiply-accumulates of one clip's forward pass, by kind."""

    embedding: int
    linear: int
    attention: int
    layer_norm: int

    @property
    def total(self) -> int:
        return self.embedding + self.linear + self.attention + self.layer_norm


@torch.no_grad()
def count_macs(spec: ModelSpec) -> Macs:
    """Count the multiply-accumulates of one clip's forward pass; of a classifier, as in training."""
    # Without gradients: the counter of torch 2.15 fails at a module that is handed a parameter.
    spec = replace(spec, checkpointing=False)
    model = model_on_meta(spec, with_importance=False).train().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = partial(_for_all_tokens, module.forward)
    clips = spec.compared_views
    num_tokens = spec.grid.num_tokens
    frames = torch.empty(clips, spec.channels, spec.frames, *spec.size, device="meta")
    # Operations, two for each multiply-accumulate.
    with FlopCounterMode(display=False, custom_mapping=_OF_NORM) as counter:
        run_on_meta(model, frames, torch.empty(clips, spec.noise_layout.total, device="meta"))
    counts, root = counter.get_flop_counts(), type(model).__name__
    # What a forward pass computes outside of these, such as the loss or a camera's motion, does not count.
    counted_modules = [name for name, _ in model.named_children() if name != "encoder"]
    counted_modules += [f"encoder.{x}" for x, _ in model.encoder.named_children() if x != "patch_embed"]
    operations = Counter[Any]()  # their number by operator
    for name in counted_modules:
        operations.update(counts.get(f"{root}.{name}", {}))
    norm, linear = operations[_NORM], sum(operations[product] for product in _LINEAR)
    per_mac = 2 * clips
    with FlopCounterMode(display=False) as counter:
        model.encoder.patch_embed(torch.empty(1, 1, spec.channels, *spec.model.tubelet, device="meta"))
    token_macs = counter.get_total_flops() // 2
    camera_tokens = num_tokens if isinstance(spec, PretrainSpec) and spec.camera else 0
    return Macs(
        # The camera's task embeds the first view of each video once more.
        embedding=token_macs * spec.noise_layout.candidates.num_tokens + token_macs * camera_tokens // clips,
        linear=linear // per_mac,
        attention=(operations.total() - norm - linear) // per_mac,
        layer_norm=norm // per_mac,
    )


def _for_all_tokens(
    forward: Callable[..., Tensor], x: Tensor, *, num_outputs: int | None = None, **options: Any
) -> Tensor:
    """Compute a block for all its tokens (B, K, D), and return the last L: (B, L, D)."""
    outputs = forward(x, **options)
    return outputs if num_outputs is None else last_tokens(outputs, num_outputs)


def count_frozen_macs(spec: ModelSpec) -> int | None:
    """Count the multiply-accumulates of a frozen tokenizer's convolutions, or of a teacher, for one clip.

    None if a training step runs neither. They are not included in the model's own count.
    """
    if teacher := teacher_in_step(spec):
        return spec.grid.t // teacher.grid.t * count_macs(teacher).total
    if not isinstance(spec, AutoencoderSpec) or spec.tokenizer_in_step is None:
        return None
    clip = torch.empty(1, spec.channels, spec.frames, *spec.size, device="meta")
    with torch.device("meta"):
        tokenizer = spec.tokenizer_in_step.settings.build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer.encode(clip)
    return counter.get_total_flops() // 2


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The numbers of tokens of a clip: all, those kept, those encoded, those predicted."""

    total: int
    kept: int
    visible: int
    target: int


def count_tokens(spec: ModelSpec) -> Tokens:
    """Count the tokens that a spec's strategy selects; the counts are the same for every clip."""
    total, strategy = spec.grid.num_tokens, spec.selection
    noise = torch.rand(1, total, generator=torch.Generator().manual_seed(0))
    selection = strategy(spec.grid, importance=noise, noise=noise)
    visible, target = selection.visible.size(1), selection.predicted.size(1)
    num_in_loss = int(selection.loss_mask().sum())
    if isinstance(spec, ViewSpec):  # no tokens are predicted
        target = num_in_loss = 0
    if visible == 0 or (isinstance(spec, AutoencoderSpec) and num_in_loss == 0):
        purpose = "encode" if visible == 0 else "predict"
        raise RecipeError(f"{strategy.strategy}: of {total} tokens none is left to {purpose}")
    return Tokens(total=total, kept=visible + num_in_loss, visible=visible, target=target)


def total_macs(spec: ClipSpec) -> int:
    """Count the multiply-accumulates of one clip's forward pass, of all parts of a model."""
    total = 0
    for part in spec.parts.values():
        if isinstance(part, ModelSpec):
            total += count_macs(part).total
        elif isinstance(part, PixelSpec):
            total += part.num_features * (part.num_classes or 0)
    return total


def view_cost(spec: ClipSpec) -> dict[str, Any]:
    """Return the tokens that a classifier keeps, and the GMACs of one view (the papers' GFLOPs; Table 10).

    `keep` and `tokens` are None for a model without tokens.
    """
    parts = [
        replace(part, selection=part.selection.at_evaluation()) if isinstance(part, ModelSpec) else part
        for part in spec.parts.values()
    ]
    tokens = [count_tokens(part) for part in parts if isinstance(part, ModelSpec)]
    visible, total = sum(each.visible for each in tokens), sum(each.total for each in tokens)
    return {
        "keep": round(visible / total, 4) if tokens else None,
        "tokens": visible if tokens else None,
        "gmacs": round(sum(map(total_macs, parts)) / 1e9, 4),
    }
