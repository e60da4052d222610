"""The camera task: a known motion of the camera is put on a still frame, and predicted from the clip.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

MOTIONS: Final = 4  # pan to the right, pan down, zoom, rotation
NUM_RANDOM: Final = MOTIONS + 1  # random numbers of a clip: for its frame and its motions
# Heuristic, over a whole clip: a quarter of a frame's width and height, a factor of e^0.5, half a radian.
LARGEST_MOTION: Final = 0.5
SHOWN_FRACTION: Final = 0.75  # heuristic: the fraction of a frame's sides that a clip shows in its middle


def moving_clips(frames: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Make a clip of each still frame, as a camera with a constant motion would show it.

    Args:
        frames: (B, C, T, H, W) uint8, or float: normalized; one frame of each clip is used.
        numbers: (B, NUM_RANDOM) uniform in [0, 1): which frame, and the motions.
    Returns:
        Clips (B, C, T, H, W) of the same type, and their motions (B, MOTIONS) with mean 0 and variance 1.
    """
    batch, _, length, height, width = frames.shape
    chosen = (numbers[:, 0] * length).long()  # (B,)
    still = frames[torch.arange(batch, device=frames.device), :, chosen].float()  # (B, C, H, W)
    motions = 2 * numbers[:, 1:] - 1  # (B, MOTIONS)
    time = torch.linspace(-0.5, 0.5, length, device=frames.device)  # (T,)
    x, y, zoom, angle = (LARGEST_MOTION * motions[:, :, None] * time).unbind(1)  # (B, T) each
    scale, aspect = SHOWN_FRACTION * zoom.exp(), width / height
    cos, sin = scale * angle.cos(), scale * angle.sin()  # (B, T)
    rows = torch.stack([cos, -sin / aspect, x, sin * aspect, cos, y], dim=2)  # (B, T, 6)
    grid = F.affine_grid(rows.view(-1, 2, 3), [batch * length, 1, height, width], align_corners=False)
    repeated = still.repeat_interleave(length, dim=0)  # (B * T, C, H, W)
    clips = F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
    clips = (clips if frames.is_floating_point() else clips.round()).to(frames.dtype)
    return clips.unflatten(0, (batch, length)).transpose(1, 2), motions * math.sqrt(3)
