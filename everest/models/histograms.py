"""Histograms of orientations: of edges, of their motion, and of the edges of change.

They say in which parts of the picture something moves where to, whatever its color. From Dalal and Triggs
2005 (gradients of images) and Dalal, Triggs and Schmid 2006 (motion), with the component of the motion along
the gradient of each pixel in place of optical flow.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

BINS: Final = 8  # directions of a histogram; of edges, whose sign does not count, in half a turn
SHARPNESS: Final = 4  # heuristic: a direction halfway to the next bin has 73 % of the weight in each
CELLS: Final = (4, 2, 1)  # along a side of the picture, of the three grids of a histogram
NUM_HISTOGRAM_FEATURES: Final = 3 * BINS * sum(side**2 for side in CELLS)


def motion_histograms(clips: Tensor) -> Tensor:
    """The square roots of the shares of each histogram, in each grid, for clips (B, C, T, H, W) of bytes.

    Averaged over pairs of successive frames. Without motion, its histograms are zero.

    Returns:
        (B, F) float32, F = NUM_HISTOGRAM_FEATURES: kinds, in each the grids, in each the bins and the cells.
    """
    luma = clips.float().mean(dim=1) / 255  # (B, T, H, W)
    if luma.size(1) == 1:
        luma = luma.expand(-1, 2, -1, -1)
    change = luma.diff(dim=1)  # (B, T - 1, H, W)
    across, down = _gradient((luma[:, 1:] + luma[:, :-1]) / 2)
    toward = -change.sign()  # of what brightens, against the gradient
    size = (across.square() + down.square()).sqrt()
    moved = change.abs() * (size > 0)
    histograms = [
        _histogram(across, down, size, turn=math.pi),
        _histogram(toward * across, toward * down, moved, turn=2 * math.pi),
    ]
    across, down = _gradient(change)
    histograms.append(_histogram(across, down, (across.square() + down.square()).sqrt(), turn=math.pi))
    return torch.cat([_shares(histogram, side) for histogram in histograms for side in CELLS], dim=1)


def _gradient(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Half the differences of the neighbors of each pixel, to the right and down: both (B, T, H, W)."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return across / 2, down / 2


def _histogram(across: Tensor, down: Tensor, weight: Tensor, *, turn: float) -> Tensor:
    """The mean weight of each direction in each cell of the finest grid: (B, BINS, 4, 4).

    Args:
        across, down, weight: (B, T, H, W); only the direction of the first two counts.
        turn: the angle over which the bins are spread; of half a turn, opposite directions are one.
    """
    size = (across.square() + down.square()).clamp(min=1e-12).sqrt()
    power = SHARPNESS * round(2 * math.pi / turn) ** 2
    bins = []
    for number in range(BINS):
        angle = number * turn / BINS
        along = (math.cos(angle) * across + math.sin(angle) * down) / size  # cosine
        along = along.abs() if turn == math.pi else along.clamp(min=0)
        bins.append(F.adaptive_avg_pool2d((weight * along**power).mean(dim=1), CELLS[0]))  # (B, 4, 4)
    return torch.stack(bins, dim=1)


def _shares(histogram: Tensor, side: int) -> Tensor:
    """The square roots (B, BINS * side * side) of the shares of all weight that the cells of a grid have."""
    cells = F.adaptive_avg_pool2d(histogram, side).flatten(1)
    return (cells / cells.sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt()
