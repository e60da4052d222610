"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch of clips with itself in reverse order.

B batch, C channels, T frames, H W pixels. One draw for the whole batch, as timm's mode "batch" does it; but
its CutMix would cut frames and rows of a clip where it means rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from everest.data.crops import Box, Size

SWITCH = 0.5  # probability of CutMix where both are on; timm and VideoMAE


def mix(
    frames: Tensor,
    labels: Tensor,
    *,
    num_classes: Sequence[int],
    smoothing: float,
    mixup: float,
    cutmix: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix every clip with its partner from the other end of the batch; one in the middle stays as it is.

    Args:
        frames: (B, C, T, H, W) float.
        labels: (B, heads) int64.
        num_classes: of each head.
        smoothing: share of the probability that is spread over all classes.
        mixup, cutmix: alpha of the Beta distribution of the share that stays; 0 is off.
    Returns:
        The mixed frames, and what a classifier is to say: (B, classes of all heads), each head's sum to 1.
    """
    of_heads = [
        F.one_hot(labels[:, head], count) * (1 - smoothing) + smoothing / count
        for head, count in enumerate(num_classes)
    ]
    targets = torch.cat(of_heads, dim=-1)  # (B, classes)
    if mixup <= 0 and cutmix <= 0:
        return frames, targets
    if cutmix > 0 and (mixup <= 0 or rng.random() < SWITCH):
        size = frames.shape[-2], frames.shape[-1]
        box = cut_box(size, kept=rng.beta(cutmix, cutmix), rng=rng)
        frames, kept = paste(frames, box), 1 - box.height * box.width / (size[0] * size[1])
    else:
        kept = rng.beta(mixup, mixup)
        frames = frames * kept + frames.flip(0) * (1 - kept)
    return frames, targets * kept + targets.flip(0) * (1 - kept)


def cut_box(size: Size, *, kept: float, rng: np.random.Generator) -> Box:
    """A box of the frame's shape that leaves `kept` of it; centred anywhere, cut off at the border."""
    share = math.sqrt(1 - kept)
    (top, bottom), (left, right) = (_span(side, int(side * share), rng) for side in size)
    return Box(top, left, bottom - top, right - left)


def _span(side: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    centre = int(rng.integers(0, side))
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, side)


def paste(frames: Tensor, box: Box) -> Tensor:
    """Fill the box of all frames with what the clip's partner has there."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    mixed = frames.clone()
    mixed[..., rows, columns] = torch.flip(frames[..., rows, columns], dims=(0,))
    return mixed
