"""Whether all of a video could be decoded that it says it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from everest.video.source import Video
from everest.video.stream import promised_seconds

# Ours: of what a file promises so much, and such a share of it, may be missing.
CUT_SECONDS: Final = 1.0
CUT_SHARE: Final = 0.1


def damage(video: Video, *, frames: int, expected: int, breaks: Sequence[int], last: float) -> str | None:
    """What is wrong with a file that was decoded from its first frame on; None where nothing is.

    Args:
        frames: how many came.
        expected: how many its packets tell.
        breaks: the packets at which decoding ended (`damages` of `decoded`).
        last: seconds at which the last frame is shown.
    """
    if frames < expected:
        return f"damaged: {frames} of {expected} frames can be decoded"
    if breaks:
        return f"damaged: breaks off after {frames} frames"
    promised = promised_seconds(video)
    if promised - last > max(CUT_SECONDS, CUT_SHARE * promised):
        return f"damaged: ends after {last:.1f} of {promised:.1f} s"
    return None
