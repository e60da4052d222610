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

ADVISE: Final = 0.2  # our choice: a camera that moves in a fifth of the time


class CameraShares(NamedTuple):
    """Shares of neighboring frames."""

    moving: float  # between which the camera moves
    unexplained: float  # with a large change that is no motion of the camera, as of a cut or a fast object


def measure_camera(pairs: NDArray[np.uint8]) -> CameraShares:
    """Estimate the camera's affine motion between neighboring frames.

    Args:
        pairs: (F, H, W, 3), a frame and the next one in turn; small frames are enough.
    """
    frames = torch.from_numpy(pairs).unflatten(0, (-1, 2)).permute(0, 4, 1, 2, 3)  # (F / 2, 3, 2, H, W)
    found = previous_frames(frames, lag=1, align="affine", pixels=IMAGENET)
    unexplained = ~found.moves & (found.change > FIT)
    return CameraShares(found.moves.float().mean().item(), unexplained.float().mean().item())


def mean_shares(videos: Sequence[CameraShares]) -> dict[str, float]:
    """The means over videos, for scripts."""
    moving, unexplained = np.mean(videos, axis=0).tolist()
    return {"moving": round(moving, 4), "unexplained": round(unexplained, 4)}


def camera_sentence(shares: dict[str, float]) -> str:
    """The shares in words, with advice."""
    moving, unexplained = shares["moving"], shares["unexplained"]
    text = (
        f"camera: it moves in {moving:.0%} of the pairs of neighboring frames; {unexplained:.0%} of the "
        "pairs change in a way that no camera explains (cuts, fast or large objects)"
    )
    if shares["moving"] < ADVISE:
        return text
    return f"{text}; --set pretrain.selection.align=affine ignores this motion (docs/camera-motion.md)"
