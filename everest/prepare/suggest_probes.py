"""The probes of a suggested recipe: often enough to see a curve, and cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from everest.train.plan import steps_between_checkpoints
from everest.train.probes import MOST_SHARE, num_probes

MOST_PROBES: Final = 20  # our choice
TINY: Final = 30  # our choice: an accuracy on fewer videos jumps by several percent


@dataclass(frozen=True, kw_only=True)
class ProbeList:
    """The videos that probes measure."""

    name: str | None  # as data.train or data.val has it; None: without labels
    videos: int
    held_out: int  # of data.val, whose loss is measured


def probe_list(
    *,
    train: str | None,
    train_videos: int,
    val: str | None,
    val_videos: int,
    most_unlabeled: int,
    most_held_out: int,
) -> ProbeList:
    """The validation list, or the training list if that is tiny; without labels if both are tiny.

    Args:
        train, val: lists with one class for each video; None: without labels, or with others.
        most_unlabeled: videos that are measured without labels.
    """
    held_out = min(val_videos, most_held_out)
    for name, videos in ((val, val_videos), (train, train_videos)):
        if name is not None and videos >= TINY:
            return ProbeList(name=name, videos=videos, held_out=held_out)
    return ProbeList(name=None, videos=min(val_videos or train_videos, most_unlabeled), held_out=held_out)


def choose_every(probed: ProbeList, *, steps: int, batch: int, videos: int) -> tuple[int, int] | None:
    """The epochs between two probes, and the number of probes; None if two of them read too many videos.

    Args:
        steps, batch: of pre-training.
        videos: for pre-training.
    """
    checkpoint = steps_between_checkpoints(steps, videos, batch)
    for every in range(1, -(-steps // checkpoint) + 1):
        probes = num_probes(steps, every * checkpoint)
        reads = probes * (probed.videos + probed.held_out)
        if probes <= MOST_PROBES and reads < MOST_SHARE * steps * batch:
            return every, probes
    return None
