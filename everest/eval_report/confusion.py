"""Which classes are taken for which, and the mistakes that a classifier is surest of.

C classes of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from everest.scores import HeadScores


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How the videos of one class fared."""

    name: str
    support: int  # videos of this class
    right: int
    confused_with: str | None  # the class that most others were taken for; None without a mistake
    confused: int  # how many these were

    @property
    def accuracy(self) -> float | None:
        """Percent; None for a class without a video."""
        return 100 * self.right / self.support if self.support else None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A video whose most probable class is not its own."""

    video: str
    label: str
    label_probability: float
    predicted: str
    probability: float


def count_confusions(head: HeadScores) -> NDArray[np.int64]:
    """(C, C) videos: rows are the true classes, columns the predicted ones."""
    means = head.means  # (videos, C)
    return confusion_matrix(head.labels, means.argmax(axis=1), labels=np.arange(means.shape[1]))


def class_results(counts: NDArray[np.int64], names: Sequence[str]) -> list[ClassResult]:
    """A result for each class of (C, C) confusions, the worst first and those without a video last."""
    others = counts * (1 - np.eye(len(counts), dtype=np.int64))
    found = []
    for number, name in enumerate(names):
        most = int(others[number].argmax())
        confused = int(others[number, most])
        found.append(
            ClassResult(
                name=name,
                support=int(counts[number].sum()),
                right=int(counts[number, number]),
                confused_with=names[most] if confused else None,
                confused=confused,
            )
        )
    return sorted(found, key=lambda row: (101.0 if row.accuracy is None else row.accuracy, -row.support))


def surest_mistakes(
    head: HeadScores, videos: Sequence[str], names: Sequence[str], *, most: int
) -> list[Mistake]:
    """Up to `most` mistakes, those with the highest probability first."""
    means = head.means  # (videos, C)
    predicted, probability = means.argmax(axis=1), means.max(axis=1)
    order = np.argsort(-probability, kind="stable")
    wrong = [int(i) for i in order if predicted[i] != head.labels[i]][:most]
    return [
        Mistake(
            video=videos[i],
            label=names[int(head.labels[i])],
            label_probability=float(means[i, head.labels[i]]),
            predicted=names[int(predicted[i])],
            probability=float(probability[i]),
        )
        for i in wrong
    ]
