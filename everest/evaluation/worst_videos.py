"""The videos whose classes or numbers are predicted worst.

V videos, C classes of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everest.metrics.predicted import HeadPredictions

ClassProbability = tuple[str, float]  # name and probability


@dataclass(frozen=True, kw_only=True)
class WrongClasses:
    """A video of which some classes are not predicted, or predicted and not there."""

    video: str
    missing: Sequence[ClassProbability]  # classes of the video, the most improbable first
    wrong: Sequence[ClassProbability]  # classes that it does not have, the most probable first
    loss: float  # binary cross-entropy, the mean over all classes


@dataclass(frozen=True, kw_only=True)
class NumberError:
    """A video and its predicted number."""

    video: str
    label: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted - self.label


def wrong_classes(
    head: HeadPredictions, videos: Sequence[str], names: Sequence[str], *, most: int
) -> list[WrongClasses]:
    """Return up to `most` videos with a mistake of a multi-label head, the highest loss first."""
    means, labels, chosen = head.means, head.labels, head.chosen  # (V, C) each
    right = np.where(labels, means, 1 - means)
    losses = -np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean(axis=1)  # (V,)
    mistaken = (labels != chosen).any(axis=1)  # (V,)
    worst = [int(i) for i in np.argsort(-losses, kind="stable") if mistaken[i]][:most]

    def named(i: int, which: NDArray[np.bool_], sign: int) -> list[ClassProbability]:
        classes = sorted(np.flatnonzero(which).tolist(), key=lambda c: sign * means[i, c])
        return [(names[c], float(means[i, c])) for c in classes]

    return [
        WrongClasses(
            video=videos[i],
            missing=named(i, labels[i] & ~chosen[i], 1),
            wrong=named(i, chosen[i] & ~labels[i], -1),
            loss=float(losses[i]),
        )
        for i in worst
    ]


def largest_errors(head: HeadPredictions, videos: Sequence[str], *, most: int) -> list[NumberError]:
    """Return up to `most` videos of a head of numbers, the largest error first."""
    predicted = head.means[:, 0].astype(np.float64)  # (V,)
    worst: list[int] = np.argsort(-np.abs(predicted - head.labels), kind="stable")[:most].tolist()
    return [
        NumberError(video=videos[i], label=float(head.labels[i]), predicted=float(predicted[i]))
        for i in worst
    ]
