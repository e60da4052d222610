"""Time budgets: seconds and number of bouts of each class, with intervals from windows that a person checked.

The footage is divided into windows of equal length, some of which are sampled at random and checked. In
checked windows the person's bouts count; the other windows are estimated
(everest_workflows.recordings.totals). The intervals hold for these recordings, however alike the windows of a
recording are.

Windows may be sampled in each of several strata (groups of recordings, such as animals), and be reported by
other groups, such as animal and day: such groups are post-strata, whose error rates are pooled.

N checked windows, C strata or groups, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from everest.metrics.intervals import TAIL_FRACTION
from everest.system.types import Floats
from everest_workflows.annotations.bout import (
    BACKGROUND,
    CHECKED,
    UNSCORED,
    Bouts,
    group_by_video,
    merge_overlaps,
)
from everest_workflows.recordings.checked_windows import (
    TIME_ROUNDING,
    Extents,
    FootageWindow,
    find_checked_windows,
    require_two_windows,
)
from everest_workflows.recordings.class_amounts import BOUTS, SECONDS, Cells, ClassAmounts, measure_classes
from everest_workflows.recordings.totals import CheckedAmounts, Estimate

QUANTILE: Final = float(norm.ppf(1 - TAIL_FRACTION))

# With the model where it helps, and by the checked windows alone; by class and amount.
Estimates = dict[tuple[str, int], tuple[Estimate, Estimate]]


class FootagePart(NamedTuple):
    """All recordings, or a group of them, with the estimates of its classes."""

    name: str  # empty: all recordings
    videos: set[str]
    is_in: NDArray[np.bool_]  # (N,) whether each checked window is of these recordings
    watched: float  # seconds of these windows
    left: Floats  # (2,) seconds and number of the windows that are not checked
    estimates: Estimates

    def seen(self, of_class: ClassAmounts, amount: int) -> float:
        """The amount of a class in the checked windows."""
        return float(of_class.labeled[amount, self.is_in].sum())

    def total(self, estimate: Estimate, of_class: ClassAmounts, amount: int) -> list[float]:
        """The total of an amount of a class, and its 95 % interval."""
        least = self.num_seen(of_class) if amount == BOUTS else 0
        return estimate.total(self.seen(of_class, amount), float(self.left[amount]), least)

    def num_seen(self, of_class: ClassAmounts) -> int:
        """The number of recordings in which the person saw a class, each with a bout or more."""
        return len(self.videos & of_class.videos_seen)


def compute_time_budget(
    extents: Extents,
    predicted: Bouts,
    checked: Bouts,
    *,
    window: float | None = None,
    classes: Sequence[str] = (),
    strata: Sequence[Collection[str]] = (),
    groups: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """Estimate the seconds and the number of bouts of each class in the footage, and in groups of recordings.

    Args:
        predicted: the bouts of the model.
        checked: the checked windows, as bouts with the label `checked`, and the person's bouts in them. A
            bout counts in the window in which it starts; one that starts exactly with a window may be cut
            there (`Borders`).
        classes: the model's classes; some may occur neither in its bouts nor in the person's.
        strata: the groups of recordings in which windows were sampled; empty: in all recordings together.
        groups: the recordings of each group to report; a group may have no checked window.
    Returns:
        `footage` in seconds, `windows`, `checked`, the `window` in seconds, `unused` (the number of the
        person's bouts outside all checked windows), `rows` (`_make_row`) of all recordings, whose group is
        empty, and of each group, `means` over the groups, and `saved_windows`.
    """
    # Rows from two draws may describe the same bout.
    checked = group_by_video(merge_overlaps(bout for video in checked.values() for bout in video))
    windows, sampled, length = find_checked_windows(extents, checked, window)
    lengths = np.array([part.end - part.start for part in sampled])  # (N,)
    amounts, borders = measure_classes(extents, predicted, checked, sampled, classes)
    cells = Cells.make(strata or [extents], windows, sampled)
    for size, number in zip(cells.windows, cells.checked, strict=True):
        require_two_windows(number if number < size else 2, " in each group of the draw")
    (of_all,) = _estimate_parts(amounts, cells, lengths, lambda amount, weight: [amount.estimate_all(weight)])
    everywhere = np.ones(len(sampled), np.bool_)
    left = cells.left.sum(axis=0)
    parts = [FootagePart("", set(extents), everywhere, float(lengths.sum()), left, of_all)]
    if groups:
        cells = Cells.make([*groups.values()], windows, sampled)
        of_groups = _estimate_parts(amounts, cells, lengths, CheckedAmounts.estimate_cells)
        for cell, ((name, videos), estimates) in enumerate(zip(groups.items(), of_groups, strict=True)):
            is_in = cells.cell_of_window == cell
            watched = float(lengths[is_in].sum())
            parts.append(FootagePart(name, set(videos), is_in, watched, cells.left[cell], estimates))
    seconds = [[each.labeled[SECONDS], each.predicted[SECONDS]] for each in amounts.values()]
    is_exclusive = bool((abs(np.sum(seconds, axis=0) - lengths) < TIME_ROUNDING).all())
    border_error = borders.relative_error * (1 - len(sampled) / len(windows))
    rows = [
        _make_row(part, label, amounts[label], of_seconds, border_error)
        for part in parts
        for label, of_seconds in _estimate_seconds(part, amounts, is_exclusive=is_exclusive).items()
    ]
    saved = [row["saved_windows"] for row in rows if not row["group"] and row["class"] != BACKGROUND]
    return {
        "footage": round(sum(end - start for _, start, end in windows), 3),
        "windows": len(windows),
        "checked": len(sampled),
        "window": length,
        "unused": _count_unused(sampled, checked),
        "rows": rows,
        "means": list(_list_means(rows)),
        "saved_windows": round(fmean(saved or [0.0]), 3),
    }


def _estimate_parts(
    amounts: Mapping[str, ClassAmounts],
    cells: Cells,
    lengths: Floats,
    estimate: Callable[[CheckedAmounts, float], list[Estimate]],
) -> list[Estimates]:
    """The estimates of all classes for each of the parts that `estimate` returns for a weight λ."""
    by_key = {}
    for label, of_class in amounts.items():
        for amount in (SECONDS, BOUTS):
            sample = of_class.sample(amount, cells, lengths)
            both = zip(estimate(sample, sample.tune()), estimate(sample, 0.0), strict=True)
            by_key[label, amount] = [
                (tuned if tuned.spread < alone.spread else alone, alone) for tuned, alone in both
            ]
    return [dict(zip(by_key, of_part, strict=True)) for of_part in zip(*by_key.values(), strict=True)]


class ClassSeconds(NamedTuple):
    """The seconds of a class: value, low and high end."""

    estimate: Estimate  # of `best`
    best: list[float]  # with the model, if this makes the interval narrower
    watched: list[float]  # by the checked windows alone


def _estimate_seconds(
    part: FootagePart, amounts: Mapping[str, ClassAmounts], *, is_exclusive: bool
) -> dict[str, ClassSeconds]:
    """The seconds of each class.

    Those of classes that exclude each other are scaled to add up to the footage, within their intervals.
    """
    seconds = {}
    for label, of_class in amounts.items():
        tuned, alone = part.estimates[label, SECONDS]
        best, watched = (part.total(each, of_class, SECONDS) for each in (tuned, alone))
        if best[2] - best[1] >= watched[2] - watched[1]:
            tuned, best = alone, [*watched]
        seconds[label] = ClassSeconds(tuned, best, watched)
    if is_exclusive:
        seen = [part.seen(of_class, SECONDS) for of_class in amounts.values()]
        for spans in ([each.best for each in seconds.values()], [each.watched for each in seconds.values()]):
            others = sum(span[0] for span in spans) - sum(seen)
            scale = float(part.left[SECONDS]) / max(others, TIME_ROUNDING)
            for span, known in zip(spans, seen, strict=True):
                value, low, high = span
                span[0] = round(min(max(known + (value - known) * scale, low), high), 3)
    return seconds


def _estimate_bouts(
    part: FootagePart, label: str, of_class: ClassAmounts, border_error: float
) -> tuple[float, list[float]]:
    """The number of bouts of a class and its 95 % interval, which few borders between windows widen."""
    bouts, *interval = part.total(part.estimates[label, BOUTS][0], of_class, BOUTS)
    border_half_width = QUANTILE * border_error * bouts if part.left[BOUTS] else 0.0
    below, above = (math.hypot(end - bouts, border_half_width) for end in interval)
    least = min(bouts, float(part.num_seen(of_class)))
    return bouts, [round(max(bouts - below, least), 3), round(bouts + above, 3)]


def _make_row(
    part: FootagePart, label: str, of_class: ClassAmounts, of_seconds: ClassSeconds, border_error: float
) -> dict[str, Any]:
    """The row of a class in a part.

    Args:
        border_error: relative standard error of numbers of bouts, of `Borders`.
    Returns:
        `seconds` with its standard error `se` and 95 % `interval`; the same time as `percent` of the
        `footage`, in seconds, and as `minutes_per_hour`; `bouts` with their `bouts_interval`,
        and `mean_bout` in seconds; the seconds of the `model`; `checked`, the seconds in the checked windows,
        `checked_percent` of their time, and `windows`, their number; `borrowed`, the weight of the other
        groups in the error rates; `watched_only`: seconds and interval without the model;
        `saved_windows`: the fraction of the checked windows that the model saves.
    """
    (best, seconds, watched), (_, alone) = of_seconds, part.estimates[label, SECONDS]
    bouts, bouts_interval = _estimate_bouts(part, label, of_class, border_error)
    seen = part.seen(of_class, SECONDS)
    footage = part.watched + float(part.left[SECONDS])
    fraction = seconds[0] / footage
    return {
        "group": part.name,
        "class": label,
        "seconds": seconds[0],
        "percent": round(100 * fraction, 2),
        "minutes_per_hour": round(60 * fraction, 3),
        "bouts": bouts,
        "mean_bout": round(seconds[0] / bouts, 3) if bouts else None,
        "se": round((seconds[2] - seconds[1]) / (2 * QUANTILE), 3),
        "interval": seconds[1:],
        "bouts_interval": bouts_interval,
        "model": round(float(sum(of_class.by_model[video][SECONDS] for video in part.videos)), 3),
        "checked": round(seen, 3),
        "checked_percent": round(100 * seen / part.watched, 2) if part.watched else None,
        "windows": int(part.is_in.sum()),
        "footage": round(footage, 3),
        "borrowed": round((1 - best.own) * (1 - float(part.is_in.mean())), 3),
        "watched_only": {"seconds": watched[0], "interval": watched[1:]},
        "saved_windows": round(1 - best.spread / alone.spread, 3) if alone.spread else 0.0,
    }


def _list_means(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the mean percent of time of each class over groups, with its standard error `sem` and `n`."""
    for label in dict.fromkeys(row["class"] for row in rows):
        percents = [row["percent"] for row in rows if row["class"] == label and row["group"]]
        if (number := len(percents)) > 1:
            sem = stdev(percents) / number**0.5
            yield {"class": label, "percent": round(fmean(percents), 2), "sem": round(sem, 2), "n": number}


def _count_unused(sampled: Sequence[FootageWindow], checked: Bouts) -> int:
    """Count the person's bouts that are outside all checked windows."""
    num_unused = 0
    for bout in (bout for video in checked.values() for bout in video):
        parts = [part for part in sampled if part.video == bout.video]
        is_inside = any(bout.start < part.end and bout.end > part.start for part in parts)
        num_unused += bout.label not in (CHECKED, UNSCORED, BACKGROUND) and not is_inside
    return num_unused
