"""How often the camera of a video moves, and how often no motion of a camera explains a change.

F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everest.methods.alignment import previous_frames
from everest.methods.camera import FIT
from everest.video.pixels import IMAGENET

APART: Final = 8  # frames, as from one slice of two frames to the next at stride 4


class CameraShares(NamedTuple):
    """Shares of pairs of neighboring frames, and of pairs that are `APART`; None: the video is too short."""

    moving: float  # between which the camera moves
    unexplained: float  # with a large change that is no motion of the camera, as of a cut or a fast object
    moving_apart: float | None
    unexplained_apart: float | None


def camera_shares(pairs: NDArray[np.uint8]) -> tuple[float, float]:
    """The shares of pairs of frames (M, 2, H, W, 3) that the camera moves between, and that change otherwise.

    Small frames are enough.
    """
    clips = torch.from_numpy(pairs).permute(0, 4, 1, 2, 3)  # (M, 3, 2, H, W)
    found = previous_frames(clips, lag=1, align="affine", pixels=IMAGENET)
    unexplained = ~found.moves & (found.change > FIT)
    return found.moves.float().mean().item(), unexplained.float().mean().item()


def mean_shares(videos: Sequence[CameraShares]) -> dict[str, float | None]:
    """The means over videos that have them, for scripts."""
    means = {}
    for name, values in zip(CameraShares._fields, zip(*videos, strict=True), strict=True):
        known = [value for value in values if value is not None]
        means[name] = round(float(np.mean(known)), 4) if known else None
    return means


def camera_sentence(shares: dict[str, float | None]) -> str:
    """The shares in words."""
    moving, unexplained, moving_apart, unexplained_apart = (shares[name] for name in CameraShares._fields)
    text = f"camera: it moves in {moving:.0%} of some pairs of neighboring frames"
    cause = "a change has another cause (cuts, fast motion, large objects)"
    if moving_apart is None:
        text += f"; in {unexplained:.0%} of them, {cause}; all videos are too short for pairs farther apart"
    else:
        text += (
            f", and in {moving_apart:.0%} of pairs that are {APART} frames apart; in {unexplained:.0%} and "
            f"{unexplained_apart:.0%} of them, {cause}"
        )
    return f"{text} (docs/camera-motion.md)"
