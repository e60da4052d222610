"""95 % intervals of metrics: the percentile bootstrap over videos (Efron and Tibshirani 1993, chapter 13).

Groups of videos that look alike are drawn with replacement, all videos of a group together, and all views of
a video (Davison and Hinkley 1997, section 3.8). Without groups, each video is drawn on its own.

An interval is about these weights, and about other groups like these. It does not contain the differences
between training runs, mistakes in the labels, or videos from elsewhere. It is too narrow if groups depend on
each other, as the recordings of one person do, and if there are fewer groups than `FEW_GROUPS`: a single
group has an interval without any width.

A accuracies, G groups, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 2000
SEED: Final = 0  # the same videos have the same interval
OUTSIDE: Final = 0.025  # on either side
# Our choice. Of the intervals of simulated sets, 85 to 87 % contained the mean with 5 groups, 90 to 91 % with
# 10, and 93 % with 15. With fewer groups than this, `everest eval` warns that its intervals are too narrow.
FEW_GROUPS: Final = 10
# Our choice: with fewer videos of a class than this, their number varies much from draw to draw, and many
# draws have none of them. Means over classes then have no interval.
FEW_OF_CLASS: Final = 5

Floats = NDArray[np.float64]
Intervals = dict[str, list[float]]  # low and high, in percent


def bootstrap(
    statistics: Callable[[Floats], Floats], groups: Sequence[Hashable], *, draws: int = DRAWS
) -> tuple[Floats, Floats]:
    """Return the 95 % intervals of statistics that are functions of how often each video counts.

    Args:
        statistics: takes the weights of the videos, (videos,), how often each was drawn, and returns the
            values, (S,). A value is nan if a draw has none, such as the recall of a class without videos;
            the draw is then left out for this statistic.
        groups: of each video, (videos,).
    Returns:
        The low and the high ends, (S,) each; nan for a statistic that no draw has.
    """
    index_of = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    group_ids = np.array([index_of[group] for group in groups])  # (videos,)
    rng = np.random.default_rng(SEED)
    values = []
    for _ in range(draws):
        drawn = rng.integers(len(index_of), size=len(index_of))  # (G,)
        counts = np.bincount(drawn, minlength=len(index_of))  # (G,)
        values.append(statistics(counts[group_ids].astype(np.float64)))
    columns = [column[~np.isnan(column)] for column in np.stack(values, axis=1)]  # S of up to (draws,)
    ends = [
        np.quantile(column, [OUTSIDE, 1 - OUTSIDE]) if len(column) else np.full(2, np.nan)
        for column in columns
    ]
    low, high = np.stack(ends, axis=1)  # (S,) each
    return low, high


def bootstrap_intervals(
    outcomes: Mapping[str, NDArray[Any]],
    correct: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    groups: Sequence[Hashable] | None = None,
) -> Intervals:
    """Return the intervals of means over videos and of `mean_class_accuracy`.

    If all videos have the same outcome, resampling cannot vary it: the bound is then the exact one of the
    binomial distribution (Clopper and Pearson 1934), so that ten of ten are 69 to 100 %. As videos of a group
    may all be alike, it counts groups: ten videos of two groups are 16 to 100 %. A draw without one of the
    classes has no `mean_class_accuracy`.

    Args:
        outcomes: by the name of an accuracy, the share of each video's views that are right, (videos,).
        correct: whether the most probable class of each video is its label, (videos,).
        labels: (videos,).
        groups: of each video, (videos,); None: each video is one.
    """
    names, groups = [*outcomes, "mean_class_accuracy"], range(len(labels)) if groups is None else groups
    values = np.array([*outcomes.values(), correct], dtype=np.float64)  # (A, videos)
    _, classes = np.unique(labels, return_inverse=True)  # those that occur

    def accuracies(weights: Floats) -> Floats:
        support = np.bincount(classes, weights)  # (classes,)
        right = np.bincount(classes, weights * values[-1])
        recall = (right / support).mean() if support.all() else np.nan
        return np.append(values[:-1] @ weights / weights.sum(), recall)

    low, high = bootstrap(accuracies, groups)  # (A,) each
    alike = (values == values[:, :1]).all(axis=1)
    bound = OUTSIDE ** (1 / len(set(groups)))
    low = np.where(alike, values[:, 0] * bound, low)
    high = np.where(alike, 1 - (1 - values[:, 0]) * bound, high)
    return {
        name: [round(100 * float(low[i]), 4), round(100 * float(high[i]), 4)] for i, name in enumerate(names)
    }
