"""Time budgets: seconds and number of bouts per class, with intervals from windows that a person checked.

The footage is divided into windows of equal length, some of which are drawn at random and checked. The
prediction-powered estimate of a total (Angelopoulos et al. 2023, arXiv 2301.09633) is the model's total, plus
the number of windows times the mean error of the model in the checked ones. As the model's total is known,
only this mean varies. The draw is without replacement from these recordings (the difference estimator of
survey sampling, Särndal et al. 1992, section 6.3), so that the intervals are about these recordings, however
alike the windows of one recording are.

W windows of the footage, N checked windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from everest.annotations.bout import Bout
from everest.errors import DataError
from everest.metrics.timeline import BACKGROUND

DRAWN: Final = "to check"  # label of the windows that are drawn
CHECKED: Final = "checked"  # a person writes it in its place
LEVEL: Final = 0.95
ROUNDED: Final = 0.002  # seconds that times in files may differ

Bouts = Mapping[str, Sequence[Bout]]  # by video


@dataclass(frozen=True, slots=True, kw_only=True)
class FootageWindow:
    """A part of a recording."""

    video: str
    start: float  # seconds
    end: float


def footage_windows(extents: Mapping[str, tuple[float, float]], seconds: float) -> list[FootageWindow]:
    """Divide recordings, by the start and end of each, into windows; the last one may be shorter."""
    windows = []
    for video, (begin, end) in extents.items():
        for number in range(max(1, math.ceil((end - begin) / seconds - 1e-6))):
            start = begin + number * seconds
            windows.append(FootageWindow(video=video, start=start, end=min(start + seconds, end)))
    return windows


def draw_windows(windows: Sequence[FootageWindow], number: int, *, seed: int = 0) -> list[FootageWindow]:
    """Draw windows without replacement, each equally likely; in the order of the footage."""
    drawn = np.random.default_rng(seed).choice(len(windows), size=number, replace=False)
    return [windows[index] for index in np.sort(drawn)]


def total_interval(errors: NDArray[np.float64], naive: float, windows: int, largest: float) -> dict[str, Any]:
    """Return the estimate of a total over W windows, and its 95 % interval, at least 0.

    Rare errors may be in no checked window. Two further windows, with the largest possible error in either
    direction, therefore count in the variance, as Agresti and Coull (1998) add outcomes for shares.

    Args:
        errors: truth less prediction in each checked window, (N,).
        naive: the model's total.
        largest: possible error of a window.
    """
    number = len(errors)
    estimate = naive + windows * float(errors.mean())
    padded = np.append(errors - errors.mean(), [largest, -largest])
    std = math.sqrt(float((padded**2).sum()) / (number + 1))
    unchecked = math.sqrt(1 - number / windows)  # finite population
    half = float(t.ppf((1 + LEVEL) / 2, number + 1)) * windows * std * unchecked / math.sqrt(number)
    return {
        "naive": round(naive, 3),
        "estimate": round(max(estimate, 0.0), 3),
        "interval": [round(max(estimate - half, 0.0), 3), round(max(estimate + half, 0.0), 3)],
    }


def time_budget(
    extents: Mapping[str, tuple[float, float]], predicted: Bouts, checked: Bouts
) -> dict[str, Any]:
    """Return seconds and number of bouts of each class in the footage.

    Args:
        extents: start and end of each recording, in seconds.
        predicted: the bouts of the model.
        checked: the checked windows, as bouts with the label `checked`, and the bouts of a person in them. A
            bout counts in the window in which it starts; one that starts with a window counts as one
            that goes back before it, but at the start of a recording.
    Returns:
        `windows`, `checked`, the `window` in seconds, and of each of the `classes` its `name`, and `seconds`
        and `bouts`: `naive`, `estimate` and `interval`.
    Raises:
        DataError: a drawn window or all but one are not checked, or one is no window of the footage.
    """
    marks = [bout for video in checked.values() for bout in video if bout.label == CHECKED]
    if left := sum(bout.label == DRAWN for video in checked.values() for bout in video):
        raise DataError(
            f"{left} windows are not checked; add the bouts in each, and write '{CHECKED}' for '{DRAWN}'"
        )
    if len(marks) < 2:
        raise DataError(
            f"two or more windows with the label '{CHECKED}' are needed, not {len(marks)}; --draw writes them"
        )
    length = max(mark.seconds for mark in marks)
    windows = footage_windows(extents, length)
    starts = {(window.video, round(window.start, 2)): window for window in windows}
    drawn = {}
    for mark in marks:
        window = starts.get((mark.video, round(mark.start, 2)))
        if window is None or abs(window.end - mark.end) > ROUNDED:
            where = f"{mark.video}, {mark.start:g} to {mark.end:g} s"
            raise DataError(
                f"{where}: no window of {length:g} s of this timeline; keep windows as --draw wrote them"
            )
        drawn[mark.video, window.start] = window
    labels = {bout.label for of in (predicted, checked) for video in of.values() for bout in video}
    classes = []
    for name in sorted(labels - {BACKGROUND, CHECKED}):
        truth = np.array([_amounts(window, checked, name, extents, manual=True) for window in drawn.values()])
        guess = np.array([_amounts(window, predicted, name, extents) for window in drawn.values()])
        mine = [bout for video in predicted.values() for bout in video if bout.label == name]
        errors = truth - guess  # (N, 2)
        naive_seconds = sum(bout.seconds for bout in mine)
        classes.append(
            {
                "name": name,
                "seconds": total_interval(errors[:, 0], naive_seconds, len(windows), length),
                "bouts": total_interval(
                    errors[:, 1], len(mine), len(windows), max(1.0, float(abs(errors[:, 1]).max()))
                ),
            }
        )
    return {"windows": len(windows), "checked": len(drawn), "window": length, "classes": classes}


def _amounts(
    window: FootageWindow,
    bouts: Bouts,
    name: str,
    extents: Mapping[str, tuple[float, float]],
    *,
    manual: bool = False,
) -> tuple[float, int]:
    """The seconds of a class in a window, and the number of its bouts that start there.

    Args:
        manual: bouts are of a person, and may be cut at the start of the window.
    """
    inside = [bout for bout in bouts.get(window.video, ()) if bout.label == name]
    seconds = sum(max(0.0, min(bout.end, window.end) - max(bout.start, window.start)) for bout in inside)
    is_first = window.start <= extents[window.video][0] + ROUNDED
    after = window.start + ROUNDED if manual and not is_first else window.start
    return seconds, sum(after <= bout.start < window.end for bout in inside)
