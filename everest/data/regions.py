"""Regions of frames that the device crops out of a batch, resizes and flips.

Worker processes copy the box of a crop as it was decoded; the training device resizes it. Boxes, flips and
random numbers are those of resizing in a worker. So are the bytes, but for a rounding: both resize the width
first, and round it to bytes.

B batch, V views, C channels, T frames, H W pixels of a clip, R S pixels of a region in memory.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from everest.data.crops import Size

CLIPS_AT_ONCE: Final = 32  # clips, our choice: 0.6 GB of values of 16 frames and 224 pixels
REGION_RATIO: Final = (8, 7)  # a region may be as much larger than a clip: 256 pixels for 224


class Regions(NamedTuple):
    """How to make clips of the regions of a batch."""

    boxes: Tensor  # (B, V, 3) int64: height and width of the region, and 1 if its clip is flipped
    size: Size  # (H, W) of the clips
    antialias: bool  # see `everest.data.crops.resize`


def largest_region(size: Size) -> Size:
    """(R, S) for clips of a size; larger boxes are resized before."""
    height, width = (-(-side * REGION_RATIO[0] // REGION_RATIO[1]) for side in size)
    return height, width


def resize_regions(frames: Tensor, regions: Regions, *, precise: bool = True) -> Tensor:
    """Resize and flip the upper left parts of frames.

    Args:
        frames: (B, V, T, R, S, C) uint8.
        precise: compute in float32, not in float16, which is fast on a GPU.
    Returns:
        (B, V, C, T, H, W) uint8.
    """
    dtype = torch.float32 if precise else torch.float16
    height, width, flipped = regions.boxes.flatten(0, 1).unbind(1)  # (B * V) each
    rows = _weights(height, regions.size[0], frames.size(3), antialias=regions.antialias)
    columns = _weights(width, regions.size[1], frames.size(4), antialias=regions.antialias)
    columns = torch.where(flipped.bool()[:, None, None], columns.flip(1), columns)
    clips = []
    for part, down, across in zip(
        frames.flatten(0, 1).split(CLIPS_AT_ONCE),
        rows.to(dtype).split(CLIPS_AT_ONCE),
        columns.to(dtype).split(CLIPS_AT_ONCE),
        strict=True,
    ):
        values = part.permute(0, 4, 1, 2, 3).to(dtype)  # (b, C, T, R, S)
        values = (values @ across.mT[:, None, None]).round()  # (b, C, T, R, W), as bytes
        clips.append((down[:, None, None] @ values).round().to(torch.uint8))  # (b, C, T, H, W)
    return torch.cat(clips).unflatten(0, frames.shape[:2])


def _weights(lengths: Tensor, wanted: int, memory: int, *, antialias: bool) -> Tensor:
    """The share of each pixel of a region's side in each pixel of the clip's: (N, wanted, memory) float32.

    The first `lengths` (N,) pixels of the side belong to the region.
    """
    scale = lengths[:, None, None] / wanted
    reach = scale.clamp(min=1) if antialias else torch.ones_like(scale)
    centers = (torch.arange(wanted, device=lengths.device)[:, None] + 0.5) * scale
    pixels = torch.arange(memory, device=lengths.device)
    shares = (1 - (pixels + 0.5 - centers).abs() / reach).clamp(min=0)
    shares = shares * (pixels < lengths[:, None, None])
    return shares / shares.sum(2, keepdim=True)
