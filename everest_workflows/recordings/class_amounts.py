"""Seconds and bouts of each class: of a person in checked windows, and of a model in all footage.

N checked windows, C cells (strata of a draw, or groups of a report).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everest.system.types import Floats
from everest_workflows.annotations.bout import BACKGROUND, CHECKED, UNSCORED, Bout, Bouts, spans_outside
from everest_workflows.recordings.checked_windows import TIME_ROUNDING, Extents, FootageWindow
from everest_workflows.recordings.totals import CheckedAmounts

SECONDS, BOUTS = 0, 1  # the amounts of a class
MIN_BORDERS: Final = 10  # heuristic: fewer adjacent checked windows count as so many


class Cells(NamedTuple):
    """Groups of recordings that hold all footage: the strata of a draw, or the groups of a report."""

    groups: Sequence[Collection[str]]  # C
    cell_of_window: NDArray[np.int64]  # (N,) cell of each checked window
    windows: NDArray[np.int64]  # (C,) number of windows
    checked: NDArray[np.int64]  # (C,) number of those that are checked
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

        def count(parts: Sequence[FootageWindow]) -> tuple[NDArray[np.int64], Floats]:
            cells = np.array([cell_of[part.video] for part in parts])
            amounts = np.zeros((len(groups), 2))  # seconds and number
            np.add.at(amounts, cells, [(part.end - part.start, 1) for part in parts])
            return cells, amounts

        _, all_amounts = count(windows)
        cell_of_window, checked_amounts = count(sampled)
        numbers, checked = (amounts[:, 1].astype(np.int64) for amounts in (all_amounts, checked_amounts))
        return cls(groups, cell_of_window, numbers, checked, (all_amounts - checked_amounts).round(6))


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
        sums_left = sums - np.bincount(cells.cell_of_window, self.predicted[amount], len(sums))
        labeled = self.labeled[amount] / unit
        return CheckedAmounts(
            labeled=labeled,
            predicted=self.predicted[amount] / unit,
            cells=cells.cell_of_window,
            windows=cells.windows,
            predicted_left=sums_left / np.maximum(cells.left[:, amount], TIME_ROUNDING),
            is_fraction=bool(amount == SECONDS and (labeled < 1 + TIME_ROUNDING).all()),  # else, two animals
        )


class WindowAmounts(NamedTuple):
    """The seconds of a class in windows, and the number of its bouts that start there."""

    seconds: Floats  # (N,)
    within: Floats  # (N,) bouts that start within a window
    at_start: Floats  # (N,) bouts that start exactly with a window, where a list may have cut them

    @classmethod
    def measure(cls, windows: Sequence[FootageWindow], bouts: Bouts, name: str) -> WindowAmounts:
        """Measure a class in each window."""
        amounts = np.array([_amounts_in(window, bouts, name) for window in windows], np.float64)  # (N, 3)
        return cls(*amounts.T)


class Borders(NamedTuple):
    """How many bouts start exactly with a window, although a list may have cut them there.

    It is known where the recording starts or the previous window is checked. Elsewhere it is as many for each
    bout that starts within a window, in all classes.
    """

    is_known: NDArray[np.bool_]  # (N,)
    ratio: float  # starts at the start of a window for each start within one
    relative_error: float  # standard error of numbers of bouts, because few windows show the ratio

    @classmethod
    def find(
        cls, extents: Extents, sampled: Sequence[FootageWindow], seen: Sequence[WindowAmounts]
    ) -> Borders:
        """Find them in what a person saw of each class."""
        ends = {(part.video, round(part.end, 3)) for part in sampled}
        is_next = np.array([(part.video, round(part.start, 3)) in ends for part in sampled])
        is_first = np.array([part.start <= extents[part.video][0] for part in sampled])
        within = np.sum([each.within for each in seen], axis=0)  # (N,)
        at_start = np.sum([each.at_start for each in seen], axis=0)  # (N,)
        num_seen = float(at_start[is_next].sum())
        ratio = num_seen / max(is_next.sum(), MIN_BORDERS) / max(within.mean(), TIME_ROUNDING)
        return cls(is_next | is_first, ratio, ratio / (1 + ratio) / max(num_seen, 1) ** 0.5)

    def count_starts(self, seen: WindowAmounts) -> Floats:
        """(N,) the number of bouts that start in each window."""
        return np.where(self.is_known, seen.within + seen.at_start, seen.within * (1 + self.ratio))


def measure_classes(
    extents: Extents,
    predicted: Bouts,
    checked: Bouts,
    sampled: Sequence[FootageWindow],
    classes: Sequence[str],
) -> tuple[dict[str, ClassAmounts], Borders]:
    """The amounts of each class, and of background: all time without a class, if there is any.

    Args:
        predicted, checked: the bouts of a model, and of a person in the sampled windows.
        classes: further classes, which may have no bout.
    """
    predicted, checked = _with_background(predicted, extents), _with_background(checked, extents)
    labels = {bout.label for video in (*predicted.values(), *checked.values()) for bout in video}
    names = [*sorted(labels.union(classes) - {BACKGROUND, UNSCORED, CHECKED}), BACKGROUND]
    seen = {name: WindowAmounts.measure(sampled, checked, name) for name in names}
    borders = Borders.find(extents, sampled, [seen[name] for name in names[:-1] or names])
    amounts = {}
    for name, of_person in seen.items():
        of_model = WindowAmounts.measure(sampled, predicted, name)
        lengths = {v: [bout.seconds for bout in predicted[v] if bout.label == name] for v in extents}
        is_seen = of_person.seconds > TIME_ROUNDING
        amounts[name] = ClassAmounts(
            labeled=np.array([of_person.seconds, borders.count_starts(of_person)]),
            predicted=np.array([of_model.seconds, of_model.within + of_model.at_start]),
            by_model={v: np.array([sum(seconds), len(seconds)]) for v, seconds in lengths.items()},
            videos_seen={part.video for part, has_class in zip(sampled, is_seen, strict=True) if has_class},
        )
    gaps = sum(each[SECONDS] for each in amounts[BACKGROUND].by_model.values())
    if not amounts[BACKGROUND].videos_seen and gaps < TIME_ROUNDING * len(extents):
        del amounts[BACKGROUND]  # classes last all the time; times are rounded
    return amounts, borders


def _with_background(bouts: Bouts, extents: Extents) -> dict[str, list[Bout]]:
    """The bouts of each recording, with bouts of background wherever there is no class."""
    filled = {}
    for video, (start, end) in extents.items():
        known = [bout for bout in bouts.get(video, ()) if bout.label not in (BACKGROUND, CHECKED, UNSCORED)]
        gaps = spans_outside([(0.0, start), *((bout.start, bout.end) for bout in known)], end)
        filled[video] = [*known, *(Bout(video=video, start=a, end=b, label=BACKGROUND) for a, b in gaps)]
    return filled


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
