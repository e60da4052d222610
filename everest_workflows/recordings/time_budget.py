"""Time budgets: seconds and number of bouts per class, with intervals from windows that a person checked.

The footage is divided into windows of equal length, some of which are drawn at random and checked. In checked
windows the person's bouts count; the unchecked windows are estimated. The prediction-powered estimate
(Angelopoulos et al. 2023, arXiv 2301.09633) is the model's total in the unchecked windows, plus their number
times the model's mean error in the checked windows. As the model's total is known, only this mean varies.
Windows are drawn without replacement from these recordings (the difference estimator of survey sampling,
Särndal et al. 1992, section 6.3), so the intervals hold for these recordings, however alike the windows of a
recording are.

Windows may also be drawn in each of several strata (groups of recordings, such as animals), whose estimates
and variances are added (Särndal et al. 1992, section 3.7).

W windows of the footage, N checked windows, S strata.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from everest.errors import DataError, RecipeError
from everest.metrics.intervals import TAIL_SHARE
from everest.system.types import Floats
from everest_workflows.annotations.bout import (
    BACKGROUND,
    CHECKED,
    DRAWN,
    UNSCORED,
    Bout,
    Bouts,
    group_by_video,
    merge_overlaps,
)

TIME_ROUNDING: Final = 0.002  # seconds by which times in files may differ
WINDOW_SECONDS: Final = 10.0  # default window length, heuristic
SHORTEST_WINDOW: Final = 1.0  # seconds; heuristic: long enough to see what happens
FIRST_WINDOW: Final = 2.0  # seconds; heuristic: a person checks 30 of these in a few minutes
DRAWN_FIRST: Final = 30  # default: number of windows to check before the first time budget
MOST_WINDOWS: Final = 10_000_000  # heuristic: so many windows take 1.1 GB

Extents = Mapping[str, tuple[float, float]]  # start and end of each recording, in seconds


class FootageWindow(NamedTuple):
    """A part of a recording."""

    video: str
    start: float  # seconds
    end: float


def divide_footage(extents: Extents, seconds: float) -> list[FootageWindow]:
    """Divide recordings into windows; the last window of each has half to one and a half times the length.

    A recording shorter than half a window is one window.
    """
    if not 0 < seconds < math.inf:
        raise RecipeError(f"--window {seconds:g}: must be a positive number of seconds")
    windows: list[FootageWindow] = []
    for video, (start, end) in extents.items():
        num_windows = (end - start) / seconds + 1e-6
        if not num_windows <= MOST_WINDOWS - len(windows):
            raise DataError(
                f"{video}: the footage up to its end, {end:g} s, has more than {MOST_WINDOWS} windows of "
                f"{seconds:g} s; correct the times of the timeline, or use a longer --window"
            )
        starts = [start + i * seconds for i in range(max(1, math.floor(num_windows + 0.5)))]
        windows += map(FootageWindow, [video] * len(starts), starts, [*starts[1:], end])
    return windows


def choose_window_seconds(extents: Extents, num_windows: int) -> float:
    """Return the seconds of a window, at most 10, so that the footage has three windows per drawn window."""
    total = sum(end - start for start, end in extents.values())
    return min(WINDOW_SECONDS, float(f"{total / (3 * num_windows):.1g}"))


def choose_first_draw(extents: Extents) -> tuple[int, float]:
    """Return the number of windows to check first, and their seconds; both are smaller in short footage."""
    total = sum(end - start for start, end in extents.values())
    num_windows = max(2, min(DRAWN_FIRST, int(total / (3 * SHORTEST_WINDOW))))
    shortest = min(SHORTEST_WINDOW, total / num_windows)
    return num_windows, max(shortest, min(FIRST_WINDOW, choose_window_seconds(extents, num_windows)))


def windows_for_half(windows: int, checked: int) -> int:
    """Return the number of checked windows that makes intervals about half as wide as `checked` does."""
    return math.ceil(4 * checked * windows / (windows + 3 * checked))


def draw_windows(
    extents: Extents,
    checked: Bouts,
    seconds: float,
    number: int,
    *,
    seed: int = 0,
    strata: Sequence[Collection[str]] = (),
) -> list[FootageWindow]:
    """Divide recordings into windows, and draw some that were not checked or drawn before.

    Windows are equally likely, drawn without replacement, and returned in the order of the footage. With
    `strata`, `number` windows are drawn in each of these groups of recordings, or all that are left there.
    """
    windows = divide_footage(extents, seconds)
    marks = [bout for video in checked.values() for bout in video if bout.label in (CHECKED, DRAWN)]
    drawn = set(_find_marked_windows(marks, windows, extents, seconds))
    remaining = [window for window in windows if window not in drawn]
    if number > len(remaining):
        unused, fix = " left" if checked else "", "draw fewer"
        if not marks and (shorter := choose_window_seconds(extents, number)) >= SHORTEST_WINDOW:
            fix = f"use --window {shorter:g}, which gives {len(divide_footage(extents, shorter))}"
        raise RecipeError(f"--draw {number}: only {len(remaining)} windows of {seconds:g} s{unused}; {fix}")
    # With the same seed, a second draw would choose neighbors of the windows of the first draw.
    generator = np.random.default_rng([seed, len(drawn)])
    pools = [[i for i, window in enumerate(remaining) if window.video in videos] for videos in strata]
    indices = [
        generator.choice(pool, size=min(number, len(pool)), replace=False)
        for pool in pools or [range(len(remaining))]
    ]
    return [remaining[i] for i in np.sort(np.concatenate(indices)).astype(int)]


def total_interval(
    labeled: Floats,
    predicted: Floats,
    *,
    naive: float,
    windows: int | NDArray[np.int64],
    strata: NDArray[np.int64] | None = None,
    largest_error: float,
    least_total: float = 0.0,
    most_unchecked: float = math.inf,
) -> dict[str, Any]:
    """Estimate a total over all windows, and its 95 % interval.

    Checked windows may miss rare errors. Therefore two further windows, with the largest possible error in
    either direction, count in the variance, as Agresti and Coull (1998) add outcomes for shares. Impossible
    totals are cut off: less than the person saw, or more than the unchecked windows can hold.

    Args:
        labeled, predicted: totals of the person and of the model in each checked window, (N,).
        naive: the model's total over all windows.
        windows: the number of windows W, or per stratum, (S,).
        strata: the stratum of each checked window, (N,); None: there is only one stratum.
        largest_error: the largest possible error of a window.
        least_total: the least possible total of all windows.
        most_unchecked: the largest possible total of the unchecked windows.
    """
    errors = labeled - predicted  # (N,)
    seen = float(labeled.sum())
    counts = np.atleast_1d(windows)  # (S,)
    estimate, variance = naive - float(predicted.sum()), 0.0  # values for the sum over unchecked windows
    for stratum, total in enumerate(counts):
        stratum_errors = errors if strata is None else errors[strata == stratum]
        num_checked = len(stratum_errors)
        num_left = total - num_checked
        estimate += num_left * float(stratum_errors.mean())
        num_added = 2 * num_checked / len(errors)  # the two further windows, shared among the strata
        squares = float(((stratum_errors - stratum_errors.mean()) ** 2).sum()) + num_added * largest_error**2
        # Variance of a sum over unchecked windows, from the mean of checked windows; 0 if all are checked.
        variance += squares / (num_checked - 1 + num_added) * num_left * total / num_checked
    half = float(t.ppf(1 - TAIL_SHARE, len(errors) - len(counts) + 2)) * math.sqrt(variance)
    sums_left = estimate - half, estimate, estimate + half
    low, middle, high = (
        round(max(least_total, seen + min(max(rest, 0.0), most_unchecked)), 3) for rest in sums_left
    )
    return {"naive": round(naive, 3), "checked": round(seen, 3), "estimate": middle, "interval": [low, high]}


def window_length(extents: Extents, checked: Bouts, window: float | None = None) -> float:
    """Return the length in seconds of the windows that were drawn, with which `window` must agree.

    The last window of a recording may differ in length and is ignored. Lists have times in milliseconds.
    """
    marks = [bout for video in checked.values() for bout in video if bout.label in (CHECKED, DRAWN)]
    if not marks:
        return round(window or WINDOW_SECONDS, 3)
    lengths = [mark.seconds for mark in marks if mark.end < extents[mark.video][1] - TIME_ROUNDING]
    if not lengths and window is None:
        longest = max((mark.seconds for mark in marks), default=0.0)
        if any(end - begin >= longest + TIME_ROUNDING for begin, end in extents.values()):
            raise RecipeError(
                "--window: give the length; all checked windows end with their recordings, so it is open"
            )
        lengths = [longest]  # each recording is one window
    length = round(max(lengths, default=window or 0.0), 3)
    if window is not None and abs(window - length) <= TIME_ROUNDING:
        return round(window, 3)
    if window is not None:
        raise RecipeError(f"--window {window:g}: the checked windows have {length:g} s; leave it out")
    return length


def compute_time_budget(
    extents: Extents,
    predicted: Bouts,
    checked: Bouts,
    *,
    window: float | None = None,
    classes: Sequence[str] = (),
    strata: Sequence[Collection[str]] = (),
) -> dict[str, Any]:
    """Estimate the seconds and the number of bouts of each class in the footage.

    A recording in which the person saw a class has at least one bout of it.

    Args:
        predicted: the bouts of the model.
        checked: the checked windows, as bouts with the label `checked`, and the person's bouts in them. A
            bout counts in the window in which it starts. A bout that starts exactly with a window is assumed
            to start earlier, unless the person saw that it does not: the recording starts there, or the
            previous window was also checked and has no bout of the class at its end.
        classes: the model's classes; some may occur neither in its bouts nor in the person's.
        strata: the groups of recordings in which windows were drawn; empty: in all recordings together.
    Returns:
        `footage` in seconds, `windows`, `checked`, the `window` in seconds, `unused` (the number of the
        person's bouts outside all checked windows), and for each of the `classes` its `name`, `seconds` and
        `bouts`, both with `naive` (the model's), `checked` (the person's), `estimate` and `interval`.
    """
    # Rows from two draws may describe the same bout.
    checked = group_by_video(merge_overlaps(bout for video in checked.values() for bout in video))
    windows, sampled, length = _find_checked_windows(extents, checked, window)
    stratum_of = {video: stratum for stratum, videos in enumerate(strata) for video in videos}
    stratum_of_checked = np.array([stratum_of.get(part.video, 0) for part in sampled])  # (N,)
    counts = np.bincount([stratum_of.get(part.video, 0) for part in windows])  # (S,)
    for count, number in zip(counts, np.bincount(stratum_of_checked, minlength=len(counts)), strict=True):
        _require_two_windows(number if number < count else 2, " in each group")
    labels = {bout.label for video in (*predicted.values(), *checked.values()) for bout in video}
    labels.update(classes)
    sizes: dict[str, Any] = {"windows": counts, "strata": stratum_of_checked}
    longest = max(length, *(end - start for _, start, end in windows))
    lengths = np.array([end - start for _, start, end in sampled])  # (N,)
    unchecked = sum(end - start for _, start, end in windows) - float(lengths.sum())  # seconds
    # Whether the person knows what happened just before each checked window.
    known_starts = {(video, round(begin, 3)) for video, (begin, _) in extents.items()}
    known_starts |= {(part.video, round(part.end, 3)) for part in sampled}
    is_known = [(part.video, round(part.start, 3)) in known_starts for part in sampled]
    rows = []
    for name in sorted(labels - {BACKGROUND, UNSCORED, CHECKED}):
        manual = [_amounts_in(*part, checked, name) for part in zip(sampled, is_known, strict=True)]
        labeled = np.array(manual).T  # (2, N)
        guessed = np.array([_amounts_in(part, None, predicted, name) for part in sampled]).T  # (2, N)
        bouts = [bout for video in predicted.values() for bout in video if bout.label == name]
        videos_seen = {part.video for part, seconds in zip(sampled, labeled[0], strict=True) if seconds}
        overlaps = (labeled[0] > lengths + TIME_ROUNDING).any()  # bouts of a class overlap: two animals
        naive = sum(bout.seconds for bout in bouts)
        most = math.inf if overlaps else unchecked
        limits: dict[str, Any] = {"largest_error": longest, "most_unchecked": most}
        seconds = total_interval(labeled[0], guessed[0], naive=naive, **sizes, **limits)
        largest = max(1.0, float(abs(labeled[1] - guessed[1]).max()))
        limits = {"largest_error": largest, "least_total": float(len(videos_seen))}
        number = total_interval(labeled[1], guessed[1], naive=len(bouts), **sizes, **limits)
        rows.append({"name": name, "seconds": seconds, "bouts": number})
    return {
        "footage": round(sum(end - start for _, start, end in windows), 3),
        "windows": len(windows),
        "checked": len(sampled),
        "window": length,
        "unused": _count_unused(sampled, checked),
        "classes": rows,
    }


def _count_unused(sampled: Sequence[FootageWindow], checked: Bouts) -> int:
    """Count the person's bouts that are outside all checked windows."""
    num_unused = 0
    for bout in (bout for video in checked.values() for bout in video):
        parts = [part for part in sampled if part.video == bout.video]
        is_inside = any(bout.start < part.end and bout.end > part.start for part in parts)
        num_unused += bout.label not in (CHECKED, UNSCORED, BACKGROUND) and not is_inside
    return num_unused


def _find_checked_windows(
    extents: Extents, checked: Bouts, window: float | None
) -> tuple[list[FootageWindow], list[FootageWindow], float]:
    """Return all windows of the footage, the checked windows, and their length in seconds.

    Raises DataError unless two or more windows are checked, and all drawn windows are.
    """
    marks = [bout for video in checked.values() for bout in video if bout.label == CHECKED]
    if left := sum(bout.label == DRAWN for video in checked.values() for bout in video):
        raise DataError(
            f"{left} windows are not checked; add the bouts in each, and write '{CHECKED}' for '{DRAWN}'"
        )
    _require_two_windows(len(marks))
    length = window_length(extents, checked, window)
    windows = divide_footage(extents, length)
    sampled = _find_marked_windows(marks, windows, extents, length)
    _require_two_windows(len(sampled))  # a window may have several marks
    for part in sampled:  # unscored time would count as time without any class
        unscored = (bout for bout in checked.get(part.video, ()) if bout.label == UNSCORED)
        if any(min(bout.end, part.end) - max(bout.start, part.start) > TIME_ROUNDING for bout in unscored):
            where = f"{part.video}, {part.start:g} to {part.end:g} s"
            raise DataError(f"{where}: is '{CHECKED}' and partly '{UNSCORED}'; score it, or write '{DRAWN}'")
    return windows, sampled, length


def _require_two_windows(count: int, where: str = "") -> None:
    if count < 2:
        need = f"two or more windows with the label '{CHECKED}' are needed{where}"
        raise DataError(f"{need}, not {count}; --draw writes them")


def _find_marked_windows(
    marks: Sequence[Bout], windows: Sequence[FootageWindow], extents: Extents, length: float
) -> list[FootageWindow]:
    """Return the windows that the marks `checked` or `drawn` cover, each once."""

    def key(part: Bout | FootageWindow) -> tuple[str, int]:
        return part.video, round((part.start - extents[part.video][0]) / length)

    by_key = {key(window): window for window in windows}
    marked: dict[FootageWindow, None] = {}
    for mark in marks:
        window = by_key.get(key(mark))
        if window is None or max(abs(window.start - mark.start), abs(window.end - mark.end)) > TIME_ROUNDING:
            where = f"{mark.video}, {mark.start:g} to {mark.end:g} s"
            raise DataError(
                f"{where}: no window of {length:g} s of this timeline; keep windows as --draw wrote them"
            )
        marked[window] = None
    return list(marked)


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
