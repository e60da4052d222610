"""A value of a suggested recipe with its reason, and the probes: often enough to see a curve, and cheap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from everest.engine.plan import steps_between_checkpoints
from everest.probes.collapse import MOST_HELD_OUT, MOST_VIDEOS, probed_steps

# The use of a recipe: pre-training only, a classifier from a pre-trained encoder, or one from scratch.
Purpose = Literal["pretrain", "finetune", "scratch"]


class Choice(NamedTuple):
    """A value of the recipe, and why."""

    key: str  # section.key
    value: Any
    reason: str


MOST_PROBES: Final = 20  # our choice
MOST_SHARE: Final = 0.05  # our choice: of the cost of a run, which its probes may add
COST: Final = 3.2  # computation for a probed video, in training clips: of the recipe custom, the most of all
TINY: Final = 30  # our choice: an accuracy on fewer videos jumps by several percent


@dataclass(frozen=True, kw_only=True)
class ProbeList:
    """The videos that probes measure."""

    name: str | None  # as data.train or data.val has it; None: without labels
    videos: int
    held_out: int  # of data.val, whose loss is measured

    def without_labels(self) -> ProbeList:
        """As many of the videos as probes without labels measure."""
        return replace(self, name=None, videos=min(self.videos, MOST_VIDEOS))


def probe_list(*, train: str | None, train_videos: int, val: str | None, val_videos: int) -> ProbeList:
    """The validation list, or the training list if that is tiny; without labels if both are tiny.

    Args:
        train, val: lists with one class for each video; None: without labels, or with others.
    """
    held_out = min(val_videos, MOST_HELD_OUT)
    for name, videos in ((val, val_videos), (train, train_videos)):
        if name is not None and videos >= TINY:
            return ProbeList(name=name, videos=videos, held_out=held_out)
    return ProbeList(name=None, videos=val_videos or train_videos, held_out=held_out).without_labels()


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
