"""The probes of a suggested recipe: often enough to see a curve, and cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from everest.train.plan import MOST_CHECKPOINTS

MOST_PROBES: Final = 20  # our choice
MOST_SHARE: Final = 0.05  # our choice: of the videos that pre-training reads
TINY: Final = 30  # our choice: an accuracy on fewer videos jumps by several percent


@dataclass(frozen=True, kw_only=True)
class ProbeList:
    """A labeled list that probes can use."""

    name: str  # as data.train or data.val has it
    videos: int
    held_out: int  # of data.val, whose loss is measured


def probe_list(
    *, train: str | None, train_videos: int, val: str | None, val_videos: int, most_held_out: int
) -> ProbeList | None:
    """The validation list, or the training list if that is tiny; None if both are."""
    held_out = min(val_videos, most_held_out)
    for name, videos in ((val, val_videos), (train, train_videos)):
        if name is not None and videos >= TINY:
            return ProbeList(name=name, videos=videos, held_out=held_out)
    return None


def choose_every(probed: ProbeList, *, steps: int, batch: int, videos: int) -> tuple[int, int] | None:
    """The epochs between two probes, and the number of probes; None if two of them read too many videos.

    Args:
        steps, batch: of pre-training.
        videos: for pre-training.
    """
    checkpoint = max(-(-videos // batch), -(-steps // MOST_CHECKPOINTS))  # as everest.train.plan
    for every in range(1, -(-steps // checkpoint) + 1):
        probes = 1 + -(-steps // (every * checkpoint))
        reads = probes * (probed.videos + probed.held_out)
        if probes <= MOST_PROBES and reads < MOST_SHARE * steps * batch:
            return every, probes
    return None
