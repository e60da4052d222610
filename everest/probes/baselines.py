"""Baselines of features: an encoder that has learned nothing, and an image of what moves.

B clips, C channels, T frames, H W pixels, D width, P places of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.checkpoints.describe import describe
from everest.data.randomness import Purpose, seed_at
from everest.inference.model import OpenedModel

SIDE: Final = 32  # our choice: rows and columns of a difference image
Features = Callable[[Tensor], Tensor]  # of clips (B, C, T, H, W) uint8: (B, D)


def difference_image(clips: Tensor) -> Tensor:
    """The mean absolute change from frame to frame of clips (B, C, T, H, W) uint8, as small images (B, P).

    It is zero for clips of one frame.
    """
    luma = clips.float().mean(dim=1)  # (B, T, H, W)
    change = luma.diff(dim=1).abs().sum(dim=1) / max(luma.size(1) - 1, 1)  # (B, H, W)
    return F.adaptive_avg_pool2d(change, SIDE).flatten(1)


def random_encoder(model: OpenedModel) -> Features:
    """The features of a model of the same shape with new weights, which take their seed from the recipe."""
    with torch.random.fork_rng(devices=[]):  # it is built on the CPU
        torch.manual_seed(seed_at(model.recipe.train.seed, Purpose.WEIGHTS))
        module = model.module.spec.without_files().build()
    describe(module, model.recipe, file=model.module.file)
    untrained = replace(model, module=module.eval().to(model.module.device))
    return lambda clips: untrained.encode(clips).pooled


BASELINES: Final[dict[str, Callable[[OpenedModel], Features]]] = {
    "random_encoder": random_encoder,
    "difference_image": lambda model: difference_image,
}
