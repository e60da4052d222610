"""AdamW's parameter groups and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from everest.config.settings import (
    FinetuneSettings,
    PretrainSettings,
)
from everest.config.tokenizer import TokenizerSettings

ParamGroup = dict[str, Any]  # what torch.optim takes: "params", "weight_decay", and our "lr_scale"


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """The linear rule of EVEREST appendix A: lr = base lr * batch / 256, the batch over all processes."""
    return base_lr * batch_size / 256


def cosine_lr(
    step: int, *, steps: int, warmup: int, peak: float, minimum: float, start: float = 0.0
) -> float:
    """The learning rate of `step` (from 0): linear to `peak`, then half a cosine to `minimum`.

    As released: the ramp includes both its ends, so the first step has `start`, the peak comes twice in a
    row, and the last step is slightly above the minimum.
    """
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    progress = (step - warmup) / (steps - warmup)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter, from 0 (embedding) over the blocks to depth + 1 (norms and head)."""
    if name.startswith("encoder.patch_embed."):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, mask token and class token (VideoMAE, BEiT)."""
    return parameter.dim() > 1 and not name.endswith((".bias", "mask_token", "class_token"))


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, depth: int, weight_decay: float, layer_decay: float = 1.0
) -> list[ParamGroup]:
    """A group per layer, decayed or not, with `lr_scale` layer_decay^(depth + 1 - layer) (Bao et al. 2021).

    Parameters that need no gradient are left out.
    """
    groups: dict[tuple[int, bool], ParamGroup] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth) if layer_decay != 1.0 else depth + 1
        key = (layer, decays(name, parameter))
        if key not in groups:
            groups[key] = {
                "params": [],
                "weight_decay": weight_decay if key[1] else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - layer),
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: list[ParamGroup], *, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form: one kernel a group. The learning rate is set before each step by `set_lr`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def stage_optimizer(
    model: nn.Module, stage: PretrainSettings | FinetuneSettings | TokenizerSettings, depth: int
) -> torch.optim.AdamW:
    """AdamW over the parameters that a stage trains."""
    layer_decay = stage.layer_decay if isinstance(stage, FinetuneSettings) else 1.0
    groups = parameter_groups(
        model.named_parameters(), depth=depth, weight_decay=stage.weight_decay, layer_decay=layer_decay
    )
    return make_optimizer(groups, betas=stage.betas)
