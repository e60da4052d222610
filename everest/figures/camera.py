"""Frames with the estimated motion of the camera drawn into them.

C channels, T frames, P pairs of frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from everest.figures.drawing import in_colors
from everest.methods.alignment import previous_frames
from everest.methods.camera import Plane
from everest.methods.ranked import ByChange
from everest.video.pixels import PixelStatistics

POINTS: Final = 6  # along the shorter side
LONGEST: Final = 0.7  # of a line, in distances of the points: lines do not touch
LINE: Final = (255, 210, 0)  # bright on most footage, also without color vision
SHADOW: Final = (0, 0, 0)
BORDER: Final = (214, 39, 40)  # of a frame that begins a scene
DRAWN_AT: Final = 224  # pixels of the shorter side, at least: thin lines in small frames


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """The camera of a clip, as a strategy estimates it."""

    frames: Tensor  # (T, H, W, 3) float32 in [0, 1], enlarged if the clip is small
    lag: int  # frames between the two of a pair
    sees_motion: bool  # whether motion was measured, or only cuts
    moves: list[bool]  # of the P pairs
    scenes: list[int]  # frames that begin one

    def to_dict(self) -> dict[str, Any]:
        """For scripts: the frames of the clip before which the camera moves, and those that begin a scene."""
        moving = [pair + self.lag for pair, is_moving in enumerate(self.moves) if is_moving]
        return {"moving": moving, "scenes": self.scenes}


def view_camera(
    clip: Tensor, selector: ByChange, *, tubelet_frames: int, pixels: PixelStatistics
) -> CameraView:
    """Draw the motion of the camera of a clip (C, T, H, W) uint8, as a strategy estimates it.

    A line leads from where a place was in the earlier frame to a dot where it is. The slice in which a scene
    begins has a border.
    """
    lag = selector.lag(tubelet_frames)
    height, width = clip.shape[2:]
    factor = -(-DRAWN_AT // min(height, width))
    images = [
        Image.fromarray(frame).resize((width * factor, height * factor))
        for frame in in_colors(clip.movedim(0, -1)).cpu().numpy()
    ]
    moves: list[bool] = []
    scenes: list[int] = []
    if clip.size(1) > lag:
        former = previous_frames(clip[None], lag=lag, align=selector.align, pixels=pixels)
        moves = former.moves[0].tolist()
        if selector.cuts == "detect":
            scenes = former.begins_scene[0].nonzero()[:, 0].tolist()
        for image, motion, is_moving in zip(images[lag:], former.motion[0].cpu().numpy(), moves, strict=True):
            if is_moving:
                _draw_motion(ImageDraw.Draw(image), image.size, motion, former.plane.times(factor))
    for number in scenes:
        first = number // tubelet_frames * tubelet_frames
        for image in images[first : first + tubelet_frames]:
            corner = (image.width - 1, image.height - 1)
            ImageDraw.Draw(image).rectangle(
                [(0, 0), corner], outline=BORDER, width=max(6, min(image.size) // 30)
            )
    frames = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
    return CameraView(
        frames=frames, lag=lag, sees_motion=selector.align != "none", moves=moves, scenes=scenes
    )


def _draw_motion(draw: ImageDraw.ImageDraw, size: tuple[int, int], motion: np.ndarray, plane: Plane) -> None:
    """Draw lines at a regular grid of places; `motion` (2, 3) maps a place in `plane` to the one before."""
    side = min(size)
    longest = float(np.abs(motion - np.eye(2, 3)).sum(axis=1).max()) * plane.unit  # at most, in pixels
    step = max(side / POINTS, longest / LONGEST)
    width = max(2, side // 100)
    columns, rows = (np.arange(step / 2, length, step) for length in size)
    places = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)  # (places, 2) x, y
    inner = (places - plane.center) / plane.unit
    earlier = (inner @ motion[:, :2].T + motion[:, 2]) * plane.unit + plane.center
    for place, start in zip(places.tolist(), earlier.tolist(), strict=True):
        draw.line([*start, *place], fill=SHADOW, width=2 * width)
        draw.line([*start, *place], fill=LINE, width=width)
        draw.circle(place, 2 * width, fill=LINE, outline=SHADOW)
