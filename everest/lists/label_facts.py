"""The balance of labels: videos of each class, the distribution of numbers, classes of a video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import numpy as np

from everest.lists.classes import indices
from everest.lists.labels import Label

# Our choice: the ratio of the most frequent class to the rarest from which a remedy is suggested.
IMBALANCED: Final = 10.0
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)  # our choice


def count_classes(labels: Iterable[Label]) -> Counter[int]:
    """Return the videos of each class that has any; a video counts for each of its classes."""
    return Counter(index for label in labels for index in indices(label))


def imbalance(counts: Collection[int]) -> float:
    """Return the ratio of the most frequent class to the rarest that has a video; 1 without classes."""
    used = [count for count in counts if count]
    return max(used) / min(used) if used else 1.0


def number_facts(labels: Iterable[Label]) -> dict[str, float] | None:
    """Return mean, std, min, max and quantiles (`q05` … `q95`) of numbers; None if there are none."""
    numbers = np.array([label for label in labels if isinstance(label, float)])
    if not len(numbers):
        return None
    facts = {
        "mean": numbers.mean(),
        "std": numbers.std(),
        "min": numbers.min(),
        "max": numbers.max(),
        **{f"q{round(100 * share):02}": np.quantile(numbers, share) for share in QUANTILES},
    }
    return {name: float(f"{value:.6g}") for name, value in facts.items()}


def are_equal(labels: Iterable[Label]) -> bool:
    """Whether there are numbers, and all are the same: a model cannot learn them."""
    return len({label for label in labels if isinstance(label, float)}) == 1


def classes_of_a_video(labels: Sequence[Label]) -> dict[str, float] | None:
    """Return the mean number of classes of a multi-label video, and the share of videos without any."""
    counts = [len(label) for label in labels if isinstance(label, tuple)]
    if not counts:
        return None
    return {"mean": round(float(np.mean(counts)), 5), "without": round(counts.count(0) / len(counts), 5)}
