"""Pixels of a clip: crop and resize on uint8 while loading, erase on the device after normalising.

B batch, T frames, H W pixels. A clip is (T, H, W, 3) as decoded and (3, T, H, W) as the model takes it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from everest.data.crops import Box, Size


def crop(clip: Tensor, box: Box) -> Tensor:
    """The same box of all frames of (T, H, W, 3), a view."""
    return clip[:, box.top : box.top + box.height, box.left : box.left + box.width]


def resize(clip: Tensor, size: Size, *, antialias: bool) -> Tensor:
    """Bilinear resize of (T, H, W, 3) uint8 to (3, T, *size) uint8, which lies in memory as the frames do.

    Args:
        antialias: True is PIL's resize, as in the released pre-training; False is that of OpenCV and of
            `interpolate`, as in the released fine-tuning and test.
    """
    frames = clip.permute(0, 3, 1, 2)  # (T, 3, H, W), channels last in memory: torch's fast path for bytes
    if frames.shape[-2:] != size:
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    return frames.transpose(0, 1)


def flip(clip: Tensor) -> Tensor:
    """Mirror (..., W) left to right."""
    return clip.flip(-1)


def erase(frames: Tensor, boxes: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill one box of every clip with noise, fresh for every frame and value (Zhong et al. 2017).

    Args:
        frames: (B, 3, T, H, W) float, normalised; so the noise is standard normal.
        boxes: (B, 4) int64 top, left, height, width; a height of 0 erases nothing.
        generator: on the device of the frames.
    """
    top, left, height, width = (side.view(-1, 1) for side in boxes.unbind(1))  # (B, 1) each
    y = torch.arange(frames.size(-2), device=frames.device)
    x = torch.arange(frames.size(-1), device=frames.device)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)  # (B, H), (B, W)
    covered = (rows[:, :, None] & columns[:, None, :])[:, None, None]  # (B, 1, 1, H, W)
    noise = torch.empty_like(frames).normal_(generator=generator)
    return torch.where(covered, noise, frames)
