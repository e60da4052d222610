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
ADVISE: Final = 0.2  # our choice: a camera that moves in a fifth of the pairs
ADVISE_CUTS: Final = 0.05  # our choice: of the pairs; a video of 100 frames with one cut has about as many


class CameraShares(NamedTuple):
    """Shares of pairs of neighboring frames, and of pairs that are `APART`."""

    moving: float  # between which the camera moves
    unexplained: float  # with a large change that is no motion of the camera, as of a cut or a fast object
    moving_apart: float
    unexplained_apart: float


def measure_camera(triples: NDArray[np.uint8]) -> CameraShares:
    """Estimate the camera's affine motion.

    Args:
        triples: (M, 3, H, W, 3), a frame, the next one and a later one; small frames are enough.
    """
    frames = torch.from_numpy(triples).permute(0, 4, 1, 2, 3)  # (M, 3, 3, H, W)
    shares = []
    for pair in ([0, 1], [0, 2]):
        found = previous_frames(frames[:, :, pair], lag=1, align="affine", pixels=IMAGENET)
        unexplained = ~found.moves & (found.change > FIT)
        shares += [found.moves.float().mean().item(), unexplained.float().mean().item()]
    return CameraShares(*shares)


def mean_shares(videos: Sequence[CameraShares]) -> dict[str, float]:
    """The means over videos, for scripts."""
    means = np.mean(videos, axis=0).tolist()
    return {name: round(mean, 4) for name, mean in zip(CameraShares._fields, means, strict=True)}


def camera_sentence(shares: dict[str, float]) -> str:
    """The shares in words, with advice."""
    text = (
        f"camera: it moves in {shares['moving']:.0%} of some pairs of neighboring frames, and in "
        f"{shares['moving_apart']:.0%} of pairs that are {APART} frames apart; in "
        f"{shares['unexplained']:.0%} and {shares['unexplained_apart']:.0%} of them, a change has another "
        "cause (cuts, fast motion, large objects)"
    )
    if max(shares["moving"], shares["moving_apart"]) >= ADVISE:
        text += "; --set pretrain.selection.align=affine ignores this motion"
    if shares["unexplained_apart"] >= ADVISE_CUTS:
        text += "; if there are cuts, --set pretrain.selection.cuts=detect finds them"
    return f"{text} (docs/camera-motion.md)"
