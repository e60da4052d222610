"""Metrics as functions of how often each video counts, as the draws of a bootstrap need them.

They equal the metrics of scikit-learn and scipy for the videos repeated by their weights. The part that does
not depend on the weights is computed once: an interval has thousands of draws.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
VideoWeights = Floats  # (V,)


def average_precisions(
    labels: NDArray[np.bool_], scores: NDArray[np.floating]
) -> Callable[[VideoWeights], Floats]:
    """Return a function from weights to the average precision of each class, (C,); nan without a video.

    Args:
        labels, scores: (V, C).
    """
    order = np.argsort(-scores, axis=0, kind="stable")  # (V, C)
    ranked, positive = np.take_along_axis(scores, order, 0), np.take_along_axis(labels, order, 0)
    # Videos of equal scores are above a threshold together: the last of them has their precision.
    ends = np.ones_like(positive)
    ends[:-1] = ranked[1:] != ranked[:-1]
    places = np.where(ends, np.arange(len(scores))[:, None], len(scores))
    last = np.minimum.accumulate(places[::-1], axis=0)[::-1]  # (V, C)

    def of(weights: VideoWeights) -> Floats:
        counted = weights[order]  # (V, C)
        found = counted * positive
        above, right = counted.cumsum(axis=0), found.cumsum(axis=0)
        precision = np.take_along_axis(right, last, 0) / np.maximum(np.take_along_axis(above, last, 0), 1)
        total = found.sum(axis=0)  # (C,)
        return np.where(total > 0, (found * precision).sum(axis=0) / np.maximum(total, 1), np.nan)

    return of


def rank_correlation(first: Floats, second: Floats) -> Callable[[VideoWeights], float]:
    """Return a function from weights to Spearman's rank correlation; nan if one of the two does not vary."""
    groups = [np.unique(values, return_inverse=True)[1] for values in (first, second)]  # (V,) each

    def of(weights: VideoWeights) -> float:
        counted = weights > 0
        if any(len(np.unique(group[counted])) < 2 for group in groups):
            return math.nan
        x, y = (_centered(_ranks(group, weights), weights) for group in groups)
        return float((weights * x) @ y / np.sqrt((weights * x) @ x * ((weights * y) @ y)))

    return of


def _ranks(groups: NDArray[np.intp], weights: VideoWeights) -> Floats:
    """Return the mean rank of each value among the values repeated by their weights."""
    counts = np.bincount(groups, weights)
    return (counts.cumsum() - (counts - 1) / 2)[groups]


def _centered(values: Floats, weights: VideoWeights) -> Floats:
    return values - weights @ values / weights.sum()


def share_of_variance(truth: Floats, predicted: Floats, weights: VideoWeights) -> float:
    """Return R², 1 minus squared errors by squared errors of the mean; nan if the truth does not vary."""
    if len(np.unique(truth[weights > 0])) < 2:
        return math.nan
    return float(1 - weights @ (truth - predicted) ** 2 / (weights @ _centered(truth, weights) ** 2))
