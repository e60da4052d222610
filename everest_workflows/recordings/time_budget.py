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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Bout,
    Bouts,
    group_by_video,
    merge_overlaps,
    spans_outside,
)
from everest_workflows.recordings.footage import (
    TIME_ROUNDING,
    Extents,
    FootageWindow,
    find_checked_windows,
    require_two_windows,
)
from everest_workflows.recordings.totals import CheckedAmounts, Estimate

SECONDS, BOUTS = 0, 1  # the amounts of a class
MIN_BORDERS: Final = 10  # heuristic: fewer adjacent checked windows count as so many
QUANTILE: Final = float(norm.ppf(1 - TAIL_FRACTION))

# With the model where it helps, and by the checked windows alone; by class and amount.
Estimates = dict[tuple[str, int], tuple[Estimate, Estimate]]


class Cells(NamedTuple):
    """Groups of recordings that hold all footage: the strata of a draw, or the groups of a report."""

    groups: Sequence[Collection[str]]  # C
    of_checked: NDArray[np.int64]  # (N,) cell of each checked window
    windows: NDArray[np.int64]  # (C,) number of windows
    left: Floats  # (C, 2) seconds and number of the windows that are not checked

    @classmethod
    def make(
        cls,
        groups: Sequence[Collection[str]],
        windows: Sequence[FootageWindow],
        sampled: Sequence[FootageWindow],
    ) -> Cells:
        """Count the windows of each group, and those of them that are checked."""
        cell_of = {video: cell for cell, videos in enumerate(groups) for video in videos}
        cells, sums = [], []
        for parts in (windows, sampled):
            cells.append(np.array([cell_of[part.video] for part in parts]))
            lengths = [part.end - part.start for part in parts]
            by_amount = [np.bincount(cells[-1], weights, len(groups)) for weights in (lengths, None)]
            sums.append(np.stack(by_amount, axis=1))
        return cls(groups, cells[1], sums[0][:, 1].astype(np.int64), (sums[0] - sums[1]).round(6))


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassAmounts:
    """Seconds and bouts of a class: of a person in the checked windows, and of a model everywhere."""

    labeled: Floats  # (2, N)
    predicted: Floats  # (2, N)
    by_model: Mapping[str, Floats]  # (2,) of each recording
    videos_seen: set[str]  # the recordings in which the person saw the class

    def sample(self, amount: int, cells: Cells, lengths: Floats) -> CheckedAmounts:
        """The amounts of windows of some lengths, (N,) seconds: fractions of the time, or bouts."""
        unit = lengths if amount == SECONDS else np.ones_like(lengths)
        sums = np.array([sum(self.by_model[video][amount] for video in videos) for videos in cells.groups])
        sums_left = sums - np.bincount(cells.of_checked, self.predicted[amount], len(sums))
        labeled = self.labeled[amount] / unit
        return CheckedAmounts(
            labeled=labeled,
            predicted=self.predicted[amount] / unit,
            cells=cells.of_checked,
            windows=cells.windows,
            predicted_left=sums_left / np.maximum(cells.left[:, amount], TIME_ROUNDING),
            is_fraction=bool(amount == SECONDS and (labeled < 1 + TIME_ROUNDING).all()),  # else, two animals
        )


class FootagePart(NamedTuple):
    """All recordings, or a group of them, with the estimates of its classes."""

    name: str  # empty: all recordings
    videos: set[str]
    is_in: NDArray[np.bool_]  # (N,) whether each checked window is of these recordings
    left: Floats  # (2,) seconds and number of the windows that are not checked
    estimates: Estimates

    def total(self, estimate: Estimate, of_class: ClassAmounts, amount: int) -> list[float]:
        """The total of an amount of a class, and its 95 % interval."""
        seen = float(of_class.labeled[amount, self.is_in].sum())
        least = len(self.videos & of_class.videos_seen) if amount == BOUTS else 0
        return estimate.total(seen, float(self.left[amount]), least)


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
            bout counts in the window in which it starts. One that starts exactly with a window may be cut
            there. How many do start there is known where the recording starts or the previous window is
            checked; elsewhere it is as many for each bout that starts within a window (`_measure_classes`).
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
    amounts, border_error = _measure_classes(extents, predicted, checked, sampled, classes)
    cells = Cells.make(strata or [extents], windows, sampled)
    counts = np.bincount(cells.of_checked, minlength=len(cells.groups))
    for size, number in zip(cells.windows, counts, strict=True):
        require_two_windows(number if number < size else 2, " in each group of the draw")
    (estimates,) = _estimate_parts(amounts, cells, lengths, is_total=True)
    border_error *= 1 - len(sampled) / len(windows)
    everywhere = np.ones(len(sampled), np.bool_)
    parts = [FootagePart("", set(extents), everywhere, cells.left.sum(axis=0), estimates)]
    if groups:
        cells = Cells.make([*groups.values()], windows, sampled)
        by_group = _estimate_parts(amounts, cells, lengths, is_total=False)
        for cell, ((name, videos), estimates) in enumerate(zip(groups.items(), by_group, strict=True)):
            parts.append(
                FootagePart(name, set(videos), cells.of_checked == cell, cells.left[cell], estimates)
            )
    seconds = [[each.labeled[SECONDS], each.predicted[SECONDS]] for each in amounts.values()]
    is_exclusive = bool((abs(np.sum(seconds, axis=0) - lengths) < TIME_ROUNDING).all())
    rows = [
        _make_row(part, label, amounts[label], of_seconds, lengths, border_error)
        for part in parts
        for label, of_seconds in _estimate_seconds(part, amounts, is_exclusive=is_exclusive).items()
    ]
    of_all = [row["saved_windows"] for row in rows if not row["group"] and row["class"] != BACKGROUND]
    return {
        "footage": round(sum(end - start for _, start, end in windows), 3),
        "windows": len(windows),
        "checked": len(sampled),
        "window": length,
        "unused": _count_unused(sampled, checked),
        "rows": rows,
        "means": list(_list_means(rows)),
        "saved_windows": round(fmean(of_all or [0.0]), 3),
    }


def _measure_classes(
    extents: Extents,
    predicted: Bouts,
    checked: Bouts,
    sampled: Sequence[FootageWindow],
    classes: Sequence[str],
) -> tuple[dict[str, ClassAmounts], float]:
    """The amounts of each class, and of background: all time without a class, if there is any.

    Also the relative standard error of all numbers of bouts, because few windows show how many bouts start
    exactly at the start of a window.
    """
    predicted, checked = _with_background(predicted, extents), _with_background(checked, extents)
    labels = {bout.label for video in (*predicted.values(), *checked.values()) for bout in video}
    names = [*sorted(labels.union(classes) - {BACKGROUND, UNSCORED, CHECKED}), BACKGROUND]
    manual = {  # (3, N)
        name: np.array([_amounts_in(part, checked, name) for part in sampled], np.float64).T for name in names
    }
    ends = {(part.video, round(part.end, 3)) for part in sampled}
    is_next = np.array([(part.video, round(part.start, 3)) in ends for part in sampled])  # to a checked one
    is_first = np.array([part.start <= extents[part.video][0] for part in sampled])
    # Starts at the start of a window for each start within one, in all classes.
    _, within, at_start = np.sum([manual[name] for name in names[:-1]] or manual[BACKGROUND][None], axis=0)
    num_seen = float(at_start[is_next].sum())
    ratio = num_seen / max(is_next.sum(), MIN_BORDERS) / max(within.mean(), TIME_ROUNDING)
    amounts = {}
    for name, (seconds, within, at_start) in manual.items():
        starts = np.where(is_next | is_first, within + at_start, within * (1 + ratio))
        lengths = {v: [b.seconds for b in predicted[v] if b.label == name] for v in extents}
        of_model = np.array([_amounts_in(part, predicted, name) for part in sampled], np.float64).T
        amounts[name] = ClassAmounts(
            labeled=np.array([seconds, starts]),
            predicted=np.array([of_model[0], of_model[1:].sum(axis=0)]),
            by_model={v: np.array([sum(seconds), len(seconds)]) for v, seconds in lengths.items()},
            videos_seen={
                part.video for part, seen in zip(sampled, seconds, strict=True) if seen > TIME_ROUNDING
            },
        )
    gaps = sum(each[SECONDS] for each in amounts[BACKGROUND].by_model.values())
    if not amounts[BACKGROUND].videos_seen and gaps < TIME_ROUNDING * len(extents):
        del amounts[BACKGROUND]  # classes last all the time; times are rounded
    return amounts, ratio / (1 + ratio) / max(num_seen, 1) ** 0.5


def _with_background(bouts: Bouts, extents: Extents) -> dict[str, list[Bout]]:
    """The bouts of each recording, with bouts of background wherever there is no class."""
    filled = {}
    for video, (start, end) in extents.items():
        known = [bout for bout in bouts.get(video, ()) if bout.label not in (BACKGROUND, CHECKED, UNSCORED)]
        gaps = spans_outside([(0.0, start), *((bout.start, bout.end) for bout in known)], end)
        filled[video] = [*known, *(Bout(video=video, start=a, end=b, label=BACKGROUND) for a, b in gaps)]
    return filled


def _estimate_parts(
    amounts: Mapping[str, ClassAmounts], cells: Cells, lengths: Floats, *, is_total: bool
) -> list[Estimates]:
    """Estimate all cells together, or each of them."""
    parts: list[Estimates] = [{} for _ in range(1 if is_total else len(cells.groups))]
    for label, of_class in amounts.items():
        for amount in (SECONDS, BOUTS):
            sample = of_class.sample(amount, cells, lengths)
            by_weight = [
                [sample.estimate_all(weight)] if is_total else sample.estimate_cells(weight)
                for weight in (sample.tune(), 0.0)
            ]
            for part, tuned, alone in zip(parts, *by_weight, strict=True):
                part[label, amount] = (tuned if tuned.spread < alone.spread else alone), alone
    return parts


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
    found = {}
    for label, of_class in amounts.items():
        tuned, alone = part.estimates[label, SECONDS]
        best, watched = (part.total(each, of_class, SECONDS) for each in (tuned, alone))
        if best[2] - best[1] >= watched[2] - watched[1]:
            tuned, best = alone, [*watched]
        found[label] = ClassSeconds(tuned, best, watched)
    if is_exclusive:
        seen = [float(each.labeled[SECONDS, part.is_in].sum()) for each in amounts.values()]
        for spans in ([each.best for each in found.values()], [each.watched for each in found.values()]):
            others = sum(span[0] for span in spans) - sum(seen)
            scale = float(part.left[SECONDS]) / max(others, TIME_ROUNDING)
            for span, known in zip(spans, seen, strict=True):
                value, low, high = span
                span[0] = round(min(max(known + (value - known) * scale, low), high), 3)
    return found


def _make_row(
    part: FootagePart,
    label: str,
    of_class: ClassAmounts,
    of_seconds: ClassSeconds,
    lengths: Floats,
    border_error: float,
) -> dict[str, Any]:
    """The row of a class in a part.

    Args:
        of_seconds: of `_estimate_seconds`.
        lengths: (N,) seconds of the checked windows.
        border_error: of `_measure_classes`.
    Returns:
        `seconds` with its standard error `se` and 95 % `interval`; the same time as `percent` of the
        `footage`, in seconds, and as `minutes_per_hour`; `bouts` with their `bouts_interval`,
        and `mean_bout` in seconds; the seconds of the `model`; `checked`, the seconds in the checked windows,
        `checked_percent` of their time, and `windows`, their number; `borrowed`, the weight of the other
        groups in the error rates; `watched_only`: seconds and interval without the model;
        `saved_windows`: the fraction of the checked windows that the model saves.
    """
    (best, seconds, watched), (_, alone) = of_seconds, part.estimates[label, SECONDS]
    bouts, *interval = part.total(part.estimates[label, BOUTS][0], of_class, BOUTS)
    of_border = QUANTILE * border_error * bouts * float(part.left[BOUTS] > 0)
    below, above = (math.hypot(end - bouts, of_border) for end in interval)
    least = min(bouts, float(len(part.videos & of_class.videos_seen)))
    low, high = round(max(bouts - below, least), 3), round(bouts + above, 3)
    watched_time = float(lengths[part.is_in].sum())
    seen = float(of_class.labeled[SECONDS, part.is_in].sum())
    footage = watched_time + float(part.left[SECONDS])
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
        "bouts_interval": [low, high],
        "model": round(float(sum(of_class.by_model[video][SECONDS] for video in part.videos)), 3),
        "checked": round(seen, 3),
        "checked_percent": round(100 * seen / watched_time, 2) if watched_time else None,
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


def _amounts_in(window: FootageWindow, bouts: Bouts, name: str) -> tuple[float, int, int]:
    """The seconds of a class in a window, and the number of its bouts that start within it, and with it."""
    inside = dict.fromkeys(bout for bout in bouts.get(window.video, ()) if bout.label == name)  # no repeats
    seconds = sum(max(0.0, min(bout.end, window.end) - max(bout.start, window.start)) for bout in inside)
    goes_on = any(abs(bout.end - window.start) <= TIME_ROUNDING for bout in inside)  # from the one before
    earliest, latest = window.start + TIME_ROUNDING, window.end - TIME_ROUNDING
    within = sum(earliest < bout.start < latest for bout in inside)
    return (
        seconds,
        within,
        0 if goes_on else sum(abs(bout.start - window.start) <= TIME_ROUNDING for bout in inside),
    )
