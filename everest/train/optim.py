"""AdamW's parameter groups and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from timm.optim import (
    param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import nn

from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.config.tokenizer import TokenizerSettings
from everest.models.positions import SPATIAL, TEMPORAL
from everest.models.video_model import VideoModel

ParamGroup = dict[str, Any]  # of torch.optim: "params", "weight_decay", and the "lr_scale" of `set_lr`
# VideoMAE, BEiT, ST-MAE; as all vectors, such as the norms'.
NO_DECAY: Final = (".bias", "mask_token", "class_token", "registers", SPATIAL, TEMPORAL)


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """The linear rule of EVEREST appendix A: lr = base lr * batch / 256, the batch over all processes."""
    return base_lr * batch_size / 256


def cosine_lr(
    step: int, *, steps: int, warmup: int, peak: float, minimum: float, start: float = 0.0
) -> float:
    """The learning rate of `step` (from 0): linear to `peak`, then half a cosine to `minimum`.

    As in the released programs, the ramp includes both its ends: the first step has `start`, two steps in a
    row have the peak, and the last step is slightly above the minimum.
    """
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    progress = (step - warmup) / (steps - warmup)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[ParamGroup]:
    """timm's parameter groups, each with an `lr_scale`. Parameters that need no gradient are in none.

    Args:
        layer_decay: the scale of a layer over that of the next one (Bao et al. 2021). The model's
            `group_matcher` defines its layers. With 1.0 all parameters have scale 1.
    """
    # Full names: older releases of timm know no patterns.
    no_decay = [name for name, _ in model.named_parameters() if name.endswith(NO_DECAY)]
    if layer_decay != 1.0:
        return param_groups_layer_decay(model, weight_decay, no_decay, layer_decay=layer_decay)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay)
    return [{**group, "lr_scale": 1.0} for group in groups]


def make_optimizer(groups: list[ParamGroup], *, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form: one kernel a group. The learning rate is set before each step by `set_lr`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def stage_optimizer(
    model: nn.Module, stage: PretrainSettings | FinetuneSettings | TokenizerSettings
) -> torch.optim.AdamW:
    """AdamW over the parameters that a stage trains."""
    layer_decay = 1.0 if isinstance(stage, TokenizerSettings) else stage.layer_decay
    groups = parameter_groups(model, weight_decay=stage.weight_decay, layer_decay=layer_decay)
    if isinstance(stage, PretrainSettings) and stage.encoder_lr_scale != 1.0:
        assert isinstance(model, VideoModel)
        groups = [part for group in groups for part in _scaled(group, model.encoder, stage.encoder_lr_scale)]
    return make_optimizer(groups, betas=stage.betas)


def _scaled(group: ParamGroup, encoder: nn.Module, scale: float) -> Iterator[ParamGroup]:
    """Split a group into the parameters of the encoder, with a scaled learning rate, and the others."""
    of_encoder = {id(parameter) for parameter in encoder.parameters()}
    for is_inside, factor in ((True, scale), (False, 1.0)):
        params = [parameter for parameter in group["params"] if (id(parameter) in of_encoder) == is_inside]
        if params:
            yield {**group, "params": params, "lr_scale": factor * group["lr_scale"]}
