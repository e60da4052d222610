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
            bout counts in the window in which it starts. A bout that starts exactly with a window is assumed
            to start earlier, unless the person saw that it does not: the recording starts there, or the
            previous window was also checked and has no bout of the class at its end.
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
    amounts = _measure_classes(extents, predicted, checked, sampled, classes)
    cells = Cells.make(strata or [extents], windows, sampled)
    counts = np.bincount(cells.of_checked, minlength=len(cells.groups))
    for size, number in zip(cells.windows, counts, strict=True):
        require_two_windows(number if number < size else 2, " in each group of the draw")
    (estimates,) = _estimate_parts(amounts, cells, lengths, is_total=True)
    everywhere = np.ones(len(sampled), np.bool_)
    parts = [FootagePart("", set(extents), everywhere, cells.left.sum(axis=0), estimates)]
    if groups:
        cells = Cells.make([*groups.values()], windows, sampled)
        by_group = _estimate_parts(amounts, cells, lengths, is_total=False)
        for cell, ((name, videos), estimates) in enumerate(zip(groups.items(), by_group, strict=True)):
            parts.append(
                FootagePart(name, set(videos), cells.of_checked == cell, cells.left[cell], estimates)
            )
    rows = [_make_row(part, label, each, lengths) for part in parts for label, each in amounts.items()]
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
) -> dict[str, ClassAmounts]:
    """The amounts of each class, and of background: all time without a class, if there is any."""
    predicted, checked = _with_background(predicted, extents), _with_background(checked, extents)
    labels = {bout.label for video in (*predicted.values(), *checked.values()) for bout in video}
    # Whether the person knows what happened just before each checked window.
    known_starts = {(video, round(begin, 3)) for video, (begin, _) in extents.items()}
    known_starts |= {(part.video, round(part.end, 3)) for part in sampled}
    is_known = [(part.video, round(part.start, 3)) in known_starts for part in sampled]
    amounts = {}
    for name in [*sorted(labels.union(classes) - {BACKGROUND, UNSCORED, CHECKED}), BACKGROUND]:
        manual = [_amounts_in(*part, checked, name) for part in zip(sampled, is_known, strict=True)]
        lengths = {v: [b.seconds for b in predicted[v] if b.label == name] for v in extents}
        amounts[name] = ClassAmounts(
            labeled=np.array(manual, np.float64).T,
            predicted=np.array([_amounts_in(part, None, predicted, name) for part in sampled], np.float64).T,
            by_model={v: np.array([sum(seconds), len(seconds)]) for v, seconds in lengths.items()},
            videos_seen={
                part.video
                for part, (seconds, _) in zip(sampled, manual, strict=True)
                if seconds > TIME_ROUNDING
            },
        )
    gaps = sum(each[SECONDS] for each in amounts[BACKGROUND].by_model.values())
    if not amounts[BACKGROUND].videos_seen and gaps < TIME_ROUNDING * len(extents):
        del amounts[BACKGROUND]  # classes last all the time; times are rounded
    return amounts


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
    """Estimate all cells together, or each of them; classes that exclude each other add up to 1."""
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
    seconds = [[each.labeled[SECONDS], each.predicted[SECONDS]] for each in amounts.values()]
    if (abs(np.sum(seconds, axis=0) - lengths) < TIME_ROUNDING).all():
        for part in parts:
            _normalize(part, list(amounts))
    return parts


def _normalize(estimates: Estimates, labels: Sequence[str]) -> None:
    """Scale the fractions of classes that exclude each other, so that they add up to 1."""
    means = [[max(each.mean, 0.0) for each in estimates[label, SECONDS]] for label in labels]
    totals = np.maximum(np.sum(means, axis=0), TIME_ROUNDING).tolist()  # with the model, and without it
    for label in labels:
        pairs = zip(estimates[label, SECONDS], totals, strict=True)
        best, alone = (each._replace(mean=each.mean / total) for each, total in pairs)
        estimates[label, SECONDS] = best, alone


def _make_row(part: FootagePart, label: str, of_class: ClassAmounts, lengths: Floats) -> dict[str, Any]:
    """The estimates of a class in a part; the checked windows have some `lengths`, (N,) seconds.

    Returns:
        `seconds` with its standard error `se` and 95 % `interval`; the same time as `percent` of the
        `footage`, in seconds, and as `minutes_per_hour`; `bouts`, `bouts_interval` and `mean_bout` in
        seconds; the seconds of the `model`, and those in the `checked` windows, whose number is `windows`;
        `watched_only`: seconds and interval without the model; `saved_windows`: the fraction of the checked
        windows that the model saves.
    """
    seen = of_class.labeled[:, part.is_in].sum(axis=1).tolist()
    left = part.left.tolist()
    best, alone = part.estimates[label, SECONDS]
    seconds, watched = (each.total(seen[SECONDS], left[SECONDS]) for each in (best, alone))
    least = float(len(part.videos & of_class.videos_seen))
    bouts = part.estimates[label, BOUTS][0].total(seen[BOUTS], left[BOUTS], least)
    footage = float(lengths[part.is_in].sum()) + left[SECONDS]
    fraction = seconds[0] / footage
    return {
        "group": part.name,
        "class": label,
        "seconds": seconds[0],
        "percent": round(100 * fraction, 2),
        "minutes_per_hour": round(60 * fraction, 3),
        "bouts": bouts[0],
        "mean_bout": round(seconds[0] / bouts[0], 3) if bouts[0] else None,
        "se": round((seconds[2] - seconds[1]) / (2 * QUANTILE), 3),
        "interval": seconds[1:],
        "bouts_interval": bouts[1:],
        "model": round(float(sum(of_class.by_model[video][SECONDS] for video in part.videos)), 3),
        "checked": round(seen[SECONDS], 3),
        "windows": int(part.is_in.sum()),
        "footage": round(footage, 3),
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


def _amounts_in(window: FootageWindow, is_known: bool | None, bouts: Bouts, name: str) -> tuple[float, int]:
    """Return the seconds of a class in a window, and the number of its bouts that start there.

    A person's bouts may be clipped at the start of the window: a bout that starts there may have begun
    earlier.

    Args:
        is_known: whether the person knows what was before; None for a model's bouts, which are never clipped.
    """
    inside = dict.fromkeys(bout for bout in bouts.get(window.video, ()) if bout.label == name)  # no repeats
    seconds = sum(max(0.0, min(bout.end, window.end) - max(bout.start, window.start)) for bout in inside)
    goes_on = any(abs(bout.end - window.start) <= TIME_ROUNDING for bout in inside)  # from the one before
    is_clipped = is_known is not None and (goes_on or not is_known)
    earliest = window.start + TIME_ROUNDING if is_clipped else window.start
    return seconds, sum(earliest <= bout.start < window.end for bout in inside)
