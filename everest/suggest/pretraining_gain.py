"""Whether pre-training between views is worth its time, by what was measured (docs/evidence.md)."""

from __future__ import annotations

from typing import Final, NamedTuple

from everest.lists.groups import ListSize
from everest.suggest.data_facts import DataFacts
from everest.system.text import counted


class Gain(NamedTuple):
    """The measured gain of fine-tuning over training from scratch, with some labels a class."""

    labels: str
    found: str  # on how many sets of clips it was resolved
    worth: bool


FEWEST: Final = 320  # videos that the encoders of the measurements had seen, at least
MANY: Final = 1000  # our choice: from here on the letters count, whose encoders had seen 2,004 clips more
MOST_LABELS: Final = (1.5, 3.0, 7.0)  # our choice: a class, for the measurements with 1, 2 and 5 of them
CAMERA: Final = "one of simulated camera motions"
RETRIEVED: Final = f"three of seven sets, {CAMERA}"
FEW_VIDEOS: Final = (
    Gain("one label a class", "gained on one of five sets, that of simulated camera motions", worth=False),
    Gain("two labels a class", f"gained on two of five sets, {CAMERA}", worth=True),
    Gain("five labels a class", f"gained on two of five sets, {CAMERA}", worth=True),
    Gain("all labels and enough steps", "gained on none of five sets", worth=False),
)
MANY_VIDEOS: Final = (
    Gain("one label a class", "did not gain on the only set measured", worth=False),
    Gain("two labels a class", "did not gain on the only set measured", worth=False),
    Gain("five labels a class", "gained on the only set measured", worth=True),
    Gain("all labels and enough steps", "gained on the only set measured", worth=True),
)


def pretraining_notice(facts: DataFacts, unlabeled: ListSize) -> str:
    """Whether pre-training on videos or windows is worth a trial."""
    videos, source = unlabeled.samples, "docs/evidence.md"
    start = f"pre-training on {counted(videos, unlabeled.unit)}"
    if videos < FEWEST:
        return f"{start} may not be worth its time: it was not measured with fewer than {FEWEST} ({source})"
    if facts.task != "single-label":
        labels = "numbers as labels" if facts.task == "regression" else "several labels a video"
        return f"{start}: not measured with {labels}; compare with a recipe without --pretrain"
    if not facts.classes:
        return (
            f"{start} is worth a trial: its features found videos of the same class more often than an "
            f"untrained encoder and an image of differences on {RETRIEVED} ({source}); `everest probe` "
            "compares them"
        )
    labels = facts.train.samples / facts.classes
    gains = FEW_VIDEOS if videos < MANY else MANY_VIDEOS
    gain = gains[sum(labels > most for most in MOST_LABELS)]
    of_labels = f"{labels:.3g} label" if labels == 1 else f"{labels:.3g} labels"
    worth = "is worth a trial" if gain.worth else "may not be worth its time"
    pretrained = "after pre-training on about 2000 videos, " if videos >= MANY else ""
    return (
        f"{start}, with {of_labels} a class, {worth}: with {gain.labels}, {pretrained}fine-tuning "
        f"{gain.found} ({source}); compare with a recipe without --pretrain"
    )
