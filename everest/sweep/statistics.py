"""Statistics over seeds: means with Student's t intervals, and differences of arms paired by seed.

An interval of the mean covers the differences between training runs (weights, order, masks), not which videos
are in the test list; the intervals of `everest eval` cover these.

N seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

LEVEL: Final = 0.95
ROUNDING: Final = 1e-9  # of the values; those that vary by less are equal


class Spread(NamedTuple):
    """A mean over seeds. The others are None for a single seed, the interval also if all values are equal."""

    mean: float
    std: float | None
    interval: tuple[float, float] | None  # 95 %, of Student's t


def spread(values: Sequence[float], *, scale: float | None = None) -> Spread:
    """The mean of one or more values, with the 95 % interval of the mean of a normal distribution.

    Args:
        scale: the size of the numbers that the values were computed from; None: of the values.
    """
    array = np.asarray(values, dtype=np.float64)  # (N,)
    mean = float(array.mean())
    if len(array) < 2:
        return Spread(mean, None, None)
    std = float(array.std(ddof=1))
    if std <= ROUNDING * (float(np.abs(array).max()) if scale is None else scale):
        return Spread(mean, std, None)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * std / len(array) ** 0.5
    return Spread(mean, std, (mean - reach, mean + reach))


class Paired(NamedTuple):
    """The differences of two arms on the same seeds; see `Spread`. p is None without an interval.

    `everest sweep report --json` has the same names.
    """

    seeds: list[int]
    values: list[float]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    p: float | None  # of the paired t-test


def paired(values: dict[int, float], others: dict[int, float]) -> Paired | None:
    """Compare two arms by their values at the seeds that both have; None if there is no such seed."""
    seeds = [seed for seed in values if seed in others]
    if not seeds:
        return None
    differences = [values[seed] - others[seed] for seed in seeds]
    largest = max(abs(value) for arm in (values, others) for value in arm.values())
    mean, std, interval = spread(differences, scale=largest)
    p = None
    if std is not None and interval is not None:
        p = 2 * float(stats.t.sf(abs(mean) / (std / len(seeds) ** 0.5), len(seeds) - 1))
    return Paired(seeds, differences, mean, std, interval, p)
