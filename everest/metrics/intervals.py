"""95 % intervals of metrics: the percentile bootstrap over videos (Efron and Tibshirani 1993, chapter 13).

Groups of videos that look alike are drawn with replacement, with all their videos and views (Davison and
Hinkley 1997, section 3.8). Without groups, each video is drawn separately.

With few groups the bootstrap interval is too narrow, so its ends are moved away from the value: by the
missing factor sqrt(G / (G - 1)), and by the ratio of the quantiles of the t and the normal distribution.

An interval holds for these weights and for other groups like these. It does not cover differences between
training runs, mistakes in the labels, or videos from elsewhere. It is too narrow if groups depend on each
other, as the recordings of one person do.

V videos, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from everest.metrics.names import CLASS_MEANS, find_metric

NUM_RESAMPLES: Final = 2000
BOOTSTRAP_SEED: Final = 0  # fixed, so that equal videos give equal intervals
TAIL_FRACTION: Final = 0.025  # fraction of the resamples beyond either end of an interval
# Heuristic: with fewer groups, intervals are wider than those of the bootstrap. In simulated sets, 90 to 93 %
# of our intervals contained the mean with 4 groups (bootstrap: 77 to 80 %), 92 to 93 % with 6 (84 to 87 %),
# and 93 to 94 % with 8 (87 to 89 %). With 10 groups, 88 to 91 % of the bootstrap intervals did.
FEW_GROUPS: Final = 10
LIMITS: Final = {"mae": (0, inf), "rmse": (0, inf), "r2": (-inf, 1), "spearman": (-1, 1)}

VideoCounts = NDArray[np.float64]  # (V,) how often each video is in a resample
MetricFunction = Callable[
    [VideoCounts], dict[str, float]
]  # nan: no value, such as the recall of a class without videos


def bootstrap(
    metrics: MetricFunction,
    groups: Sequence[Hashable],
    *,
    fractions: bool = True,
    resamples: int = NUM_RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each metric; nan if no resample has a value.

    Resamples without a value of a metric are left out of its interval. A fraction that is equal in all
    resamples, such as ten right videos of ten, gets the exact bound of the binomial distribution (Clopper and
    Pearson 1934): 69 to 100 %. The bound counts groups, as all videos of a group may be alike. A mean over
    classes gets it at 0 and 100 % only: one output for all videos always has the same mean class accuracy.
    With few groups, the ends are moved away from the value (see above), up to the limits of the metric.

    Args:
        groups: the group of each video, (V,).
        fractions: whether the metrics range from 0 to 1.
    """
    group_indices = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    group_ids = np.array([group_indices[group] for group in groups])  # (V,)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    rows = []
    for _ in range(resamples):
        sampled = rng.integers(len(group_indices), size=len(group_indices))  # (G,)
        counts = np.bincount(sampled, minlength=len(group_indices))  # (G,)
        rows.append(metrics(counts[group_ids].astype(np.float64)))
    bound = TAIL_FRACTION ** (1 / len(group_indices))
    measured = metrics(np.ones(len(groups)))
    intervals = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        values = values[~np.isnan(values)]
        if not len(values):
            intervals[name] = (np.nan, np.nan)
        elif fractions and np.ptp(values) == 0 and (name not in CLASS_MEANS or values[0] in (0, 1)):
            intervals[name] = (float(values[0]) * bound, 1 - (1 - float(values[0])) * bound)
        else:
            ends = np.quantile(values, [TAIL_FRACTION, 1 - TAIL_FRACTION])
            if 1 < len(group_indices) < FEW_GROUPS:
                ends = measured[name] + widening(len(group_indices)) * (ends - measured[name])
                lowest, highest = (0.0, 1.0) if fractions else LIMITS.get(name, (-inf, inf))
                ends = np.clip(ends, lowest, highest)
            intervals[name] = (float(ends[0]), float(ends[1]))
    return intervals


def limit_interval(
    metric: str, ends: tuple[float, float], *, is_difference: bool = False
) -> tuple[float, float]:
    """Cut an interval of a metric, in the unit in which it is shown, to values that the metric can have.

    A percentage is from 0 to 100, and the difference of two from -100 to 100.
    """
    found = find_metric(metric)
    limits = (0.0, 100.0) if found is not None and found.is_percent else LIMITS.get(metric, (-inf, inf))
    if is_difference:
        limits = (limits[0] - limits[1], limits[1] - limits[0])
    lowest, highest = limits
    return min(max(ends[0], lowest), highest), min(max(ends[1], lowest), highest)


def widening(groups: int) -> float:
    """The factor by which the ends of an interval move away from the value, with few groups."""
    quantiles = t.ppf(1 - TAIL_FRACTION, groups - 1) / norm.ppf(1 - TAIL_FRACTION)
    return math.sqrt(groups / (groups - 1)) * float(quantiles)
