"""The input of a model, made from the normalized frames of a clip: the frames themselves, or their changes.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from everest.config.values import Input
from everest.video.pixels import PixelStatistics

SCALE: Final = 2.0  # our choice: neighboring frames differ less than frames do


def model_input(frames: Tensor, kind: Input, pixels: PixelStatistics) -> Tensor:
    """Map clips (B, C, T, H, W), bytes or normalized, to the input of a model, of the same shape."""
    return frame_differences(pixels.normalized(frames)) if kind == "differences" else frames


def frame_differences(frames: Tensor) -> Tensor:
    """Twice the change of each frame since the frame before, (B, C, T, H, W) for clips of this shape.

    The first frame has none before it and takes the change of the second. Still pixels are exactly zero. Our
    choice: a network of few clips has to find what moves by itself otherwise.

    Raises:
        ValueError: clips of one frame.
    """
    if frames.size(2) < 2:
        raise ValueError("frame differences need clips of at least two frames")
    change = SCALE * frames.diff(dim=2)  # (B, C, T - 1, H, W)
    return torch.cat([change[:, :, :1], change], dim=2)
