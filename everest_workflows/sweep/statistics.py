"""The statistics of a sweep: means over seeds, and differences of two variants at the same seeds.

An interval over seeds is Student's t interval. It covers the differences between training runs (weights,
order, masks), not which videos are in the test list. An interval over groups and seeds also covers these:
its bootstrap draws both anew, independently (Owen 2007, "The pigeonhole bootstrap"). Without groups, each
video is one.

N seeds, V videos, G groups, R resamples.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

from everest.metrics.intervals import (
    BOOTSTRAP_SEED,
    FEW_GROUPS,
    NUM_RESAMPLES,
    TAIL_FRACTION,
    limit_interval,
    widening,
)

RELATIVE_ROUNDING: Final = 1e-9  # of the values; those that vary by less are equal
# The metrics that are means over videos, with their column in the file of `everest eval --predictions`, and
# the factor from this column to their unit.
VIDEO_COLUMNS: Final = {"top1": ("correct", 100), "exact_match": ("correct", 100), "mae": ("error", 1)}
Interval = tuple[float, float]
Outcomes = Mapping[tuple[str, str], float]  # by group and video


class Spread(NamedTuple):
    """A mean over seeds; with a single seed it is the only number. Equal values have no interval."""

    mean: float
    std: float | None
    interval: Interval | None  # 95 %, of Student's t


def find_spread(
    values: Sequence[float], *, scale: float | None = None, metric: str = "", is_difference: bool = False
) -> Spread:
    """The mean of one or more values, with the 95 % interval of the mean of a normal distribution.

    `scale` is the size of the numbers that the values were computed from; None: that of the values. The
    interval has only values that the metric, or the difference of two, can have.
    """
    array = np.asarray(values, dtype=np.float64)  # (N,)
    mean = float(array.mean())
    if len(array) < 2:
        return Spread(mean, None, None)
    std = float(array.std(ddof=1))
    if std <= RELATIVE_ROUNDING * (float(np.abs(array).max()) if scale is None else scale):
        return Spread(mean, std, None)
    reach = float(stats.t.ppf(1 - TAIL_FRACTION, len(array) - 1)) * std / len(array) ** 0.5
    ends = limit_interval(metric, (mean - reach, mean + reach), is_difference=is_difference)
    return Spread(mean, std, ends)


class PairedDifference(NamedTuple):
    """The differences of two variants on the same seeds; see `Spread`. The names are those of --json."""

    seeds: list[int]
    values: list[float]
    mean: float
    std: float | None
    interval: Interval | None
    p: float | None  # of the paired t-test; None without an interval


def compare_pairs(
    values: dict[int, float], reference: dict[int, float], *, metric: str = ""
) -> PairedDifference | None:
    """Compare two variants by their values at the seeds that both have; None if there is no such seed."""
    seeds = [seed for seed in values if seed in reference]
    if not seeds:
        return None
    differences = [values[seed] - reference[seed] for seed in seeds]
    largest = max(abs(value) for variant in (values, reference) for value in variant.values())
    mean, std, interval = find_spread(differences, scale=largest, metric=metric, is_difference=True)
    p = None
    if std is not None and interval is not None:
        p = 2 * float(stats.t.sf(abs(mean) / (std / len(seeds) ** 0.5), len(seeds) - 1))
    return PairedDifference(seeds, differences, mean, std, interval, p)


def read_outcomes(file: Path, metric: str) -> Outcomes:
    """What each video adds to a metric, by its group and path; empty if the metric is no mean over videos."""
    head, _, name = metric.rpartition(".")
    if name not in VIDEO_COLUMNS or not file.is_file():
        return {}
    column, factor = VIDEO_COLUMNS[name]
    column += f".{head}" if head else ""
    with file.open(encoding="utf-8", newline="") as text:
        return {
            (row.get("group") or row["video"], row["video"]): factor * abs(float(row[column]))
            for row in csv.DictReader(text)
        }


class SampledDifference(NamedTuple):
    """A difference over test videos; the names are those of --json."""

    group_interval: Interval | None = None  # over groups and seeds; None of one group, or of equal gains
    videos: int = 0  # 0: the outcomes of each video are unknown
    groups: int = 0


def bootstrap_difference(
    pairs: Sequence[tuple[Outcomes, Outcomes]], *, metric: str = ""
) -> SampledDifference:
    """The 95 % interval of the mean difference over groups and seeds, from `read_outcomes` of both variants.

    Of few groups it is wider, as in everest.metrics.intervals.
    """
    videos = sorted(set.intersection(*(set(each) for pair in pairs for each in pair))) if pairs else []
    if not videos:
        return SampledDifference()
    gains = np.array([[first[key] - second[key] for key in videos] for first, second in pairs])  # (N, V)
    _, starts = np.unique([group for group, _ in videos], return_index=True)  # (G,); videos are sorted
    num_seeds, num_groups = len(pairs), len(starts)
    if num_groups == 1 or not np.ptp(gains):
        return SampledDifference(None, len(videos), num_groups)
    sums = np.add.reduceat(gains, starts, axis=1)  # (N, G)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    seed_counts, counts = (  # (R, N), (R, G): how often each is in a resample
        rng.multinomial(size, [1 / size] * size, NUM_RESAMPLES) for size in sums.shape
    )
    sizes = counts @ np.diff([*starts, len(videos)])  # (R,) videos
    means = ((seed_counts @ sums) * counts).sum(axis=1) / (num_seeds * sizes)  # (R,)
    ends = np.quantile(means, [TAIL_FRACTION, 1 - TAIL_FRACTION])
    if num_groups < FEW_GROUPS:
        ends = gains.mean() + widening(num_groups) * (ends - gains.mean())
    low, high = map(float, ends)
    return SampledDifference(limit_interval(metric, (low, high), is_difference=True), len(videos), num_groups)
