"""A value of a suggested recipe with its reason, and the probes: often enough to see a curve, and cheap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from everest.train.plan import steps_between_checkpoints
from everest.train.probes import MOST_SHARE, probed_steps

# The use of a recipe: pre-training only, a classifier from a pre-trained encoder, or one from scratch.
Purpose = Literal["pretrain", "finetune", "scratch"]


class Choice(NamedTuple):
    """A value of the recipe, and why."""

    key: str  # section.key
    value: Any
    reason: str


MOST_PROBES: Final = 20  # our choice
COST: Final = 3.2  # computation for a probed video, in training clips: of the recipe custom, the most of all
TINY: Final = 30  # our choice: an accuracy on fewer videos jumps by several percent


@dataclass(frozen=True, kw_only=True)
class ProbeList:
    """The videos that probes measure."""

    name: str | None  # as data.train or data.val has it; None: without labels
    videos: int
    held_out: int  # of data.val, whose loss is measured

    def without_labels(self, most: int) -> ProbeList:
        """At most `most` of the videos, whose classes are not probed."""
        return replace(self, name=None, videos=min(self.videos, most))


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


def choose_every(probed: ProbeList, *, steps: int, batch: int, videos: int) -> tuple[int, float] | None:
    """The epochs between two probes, and their share of the cost; None if so few as two cost too much.

    Args:
        steps, batch: of pre-training.
        videos: for pre-training.
    """
    checkpoint = steps_between_checkpoints(steps, videos, batch)
    for every in range(1, -(-steps // checkpoint) + 1):
        probes = len(probed_steps(steps, every=every, checkpoint_steps=checkpoint))
        share = probes * COST * (probed.videos + probed.held_out) / (steps * batch)
        if probes <= MOST_PROBES and share < MOST_SHARE:
            return every, share
    return None
