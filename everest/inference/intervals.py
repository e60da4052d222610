"""95 % intervals of accuracies: the percentile bootstrap over videos (Efron and Tibshirani 1993, chapter 13).

Videos are drawn with replacement, all views of a video together. The interval is about these weights and
other videos like these; it does not contain the differences between training runs, and it is too narrow if
videos depend on each other, as those from one recording do.

A accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 2000
SEED: Final = 0  # the same videos have the same interval
OUTSIDE: Final = 0.025  # on either side

Intervals = dict[str, list[float]]  # low and high, in percent


def bootstrap_intervals(
    outcomes: Mapping[str, NDArray[Any]], correct: NDArray[np.bool_], labels: NDArray[np.int64]
) -> Intervals:
    """Return the intervals of means over videos and of `mean_class_accuracy`.

    If all videos have the same outcome, resampling cannot vary it: the bound is then the exact one of the
    binomial distribution (Clopper and Pearson 1934), so that ten of ten are 69 to 100 %.

    Args:
        outcomes: by the name of an accuracy, the share of each video's views that are right, (videos,).
        correct: whether the most probable class of each video is its label, (videos,).
        labels: (videos,).
    """
    names, videos = [*outcomes, "mean_class_accuracy"], len(labels)
    values = np.array([*outcomes.values(), correct], dtype=np.float64)  # (A, videos)
    draws = np.empty((DRAWS, len(names)))
    rng = np.random.default_rng(SEED)
    for draw in draws:
        drawn = rng.integers(videos, size=videos)
        draw[:-1] = values[:-1, drawn].mean(axis=1)
        support = np.bincount(labels[drawn])  # (classes,)
        right = np.bincount(labels[drawn], weights=values[-1, drawn])
        draw[-1] = (right[support > 0] / support[support > 0]).mean()
    low, high = np.quantile(draws, [OUTSIDE, 1 - OUTSIDE], axis=0)  # (A,) each
    alike = (values == values[:, :1]).all(axis=1)
    bound = OUTSIDE ** (1 / videos)
    low = np.where(alike, values[:, 0] * bound, low)
    high = np.where(alike, 1 - (1 - values[:, 0]) * bound, high)
    return {
        name: [round(100 * float(low[i]), 4), round(100 * float(high[i]), 4)] for i, name in enumerate(names)
    }
