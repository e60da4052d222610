"""The windows of footage: divided, sampled at random, and found again in a list that a person checked.

The footage is all recordings of a timeline. A window has a mark in the list: the label TO_CHECK, which a
person replaces by CHECKED.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from everest.errors import DataError, RecipeError
from everest_workflows.annotations.bout import CHECKED, TO_CHECK, UNSCORED, Bout, Bouts

TIME_ROUNDING: Final = 0.002  # seconds by which times in files may differ
WINDOW_SECONDS: Final = 10.0  # longest window of `checked_window_seconds`, heuristic
SHORTEST_WINDOW: Final = 1.0  # seconds; heuristic: long enough to see what happens
FIRST_WINDOW: Final = 2.0  # seconds; heuristic: a person checks 30 of these in a few minutes
SAMPLED_FIRST: Final = 30  # default: number of windows to check before the first time budget
MAX_WINDOWS: Final = 10_000_000  # heuristic: so many windows take 1.1 GB

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
        if not num_windows <= MAX_WINDOWS - len(windows):
            raise DataError(
                f"{video}: the footage up to its end, {end:g} s, has more than {MAX_WINDOWS} windows of "
                f"{seconds:g} s; correct the times of the timeline, or use a longer --window"
            )
        starts = [start + i * seconds for i in range(max(1, math.floor(num_windows + 0.5)))]
        windows += map(FootageWindow, [video] * len(starts), starts, [*starts[1:], end])
    return windows


def checked_window_seconds(extents: Extents, num_windows: int) -> float:
    """Return the seconds of a window, at most 10, so that the footage has three for each in the sample."""
    total = sum(end - start for start, end in extents.values())
    return min(WINDOW_SECONDS, float(f"{total / (3 * num_windows):.1g}"))


def choose_first_sample(extents: Extents) -> tuple[int, float]:
    """Return the number of windows to check first, and their seconds; both are smaller in short footage."""
    total = sum(end - start for start, end in extents.values())
    num_windows = max(2, min(SAMPLED_FIRST, int(total / (3 * SHORTEST_WINDOW))))
    shortest = min(SHORTEST_WINDOW, total / num_windows)
    return num_windows, max(shortest, min(FIRST_WINDOW, checked_window_seconds(extents, num_windows)))


def windows_for_half(windows: int, checked: int) -> int:
    """Return the number of checked windows that makes intervals about half as wide as `checked` does."""
    return math.ceil(4 * checked * windows / (windows + 3 * checked))


def sample_windows(
    extents: Extents,
    checked: Bouts,
    seconds: float,
    number: int,
    *,
    seed: int = 0,
    strata: Sequence[Collection[str]] = (),
) -> list[FootageWindow]:
    """Divide recordings into windows, and draw some that were not checked or sampled before.

    Windows are equally likely, sampled without replacement, and returned in the order of the footage. With
    `strata`, `number` windows are sampled in each of these groups of recordings, or all that are left there.
    """
    windows = divide_footage(extents, seconds)
    marks = [bout for video in checked.values() for bout in video if bout.label in (CHECKED, TO_CHECK)]
    sampled = set(_find_marked_windows(marks, windows, extents, seconds))
    remaining = [window for window in windows if window not in sampled]
    if number > len(remaining):
        unused, fix = " left" if checked else "", "draw fewer"
        if not marks and (shorter := checked_window_seconds(extents, number)) >= SHORTEST_WINDOW:
            fix = f"use --window {shorter:g}, which gives {len(divide_footage(extents, shorter))}"
        raise RecipeError(f"--draw {number}: only {len(remaining)} windows of {seconds:g} s{unused}; {fix}")
    # With the same seed, a second draw would choose neighbors of the windows of the first draw.
    generator = np.random.default_rng([seed, len(sampled)])
    pools = [[i for i, window in enumerate(remaining) if window.video in videos] for videos in strata]
    indices = [
        generator.choice(pool, size=min(number, len(pool)), replace=False)
        for pool in pools or [range(len(remaining))]
    ]
    return [remaining[i] for i in np.sort(np.concatenate(indices)).astype(int)]


def window_length(extents: Extents, checked: Bouts, window: float | None = None) -> float:
    """Return the length in seconds of the windows that were drawn, with which `window` must agree.

    The last window of a recording may differ in length and is ignored. Lists have times in milliseconds.
    """
    marks = [bout for video in checked.values() for bout in video if bout.label in (CHECKED, TO_CHECK)]
    if not marks:
        return round(window or choose_first_sample(extents)[1], 3)
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


def find_checked_windows(
    extents: Extents, checked: Bouts, window: float | None
) -> tuple[list[FootageWindow], list[FootageWindow], float]:
    """Return all windows of the footage, the checked windows, and their length in seconds.

    Raises DataError unless two or more windows are checked, and all sampled windows are.
    """
    marks = [bout for video in checked.values() for bout in video if bout.label == CHECKED]
    if left := sum(bout.label == TO_CHECK for video in checked.values() for bout in video):
        raise DataError(
            f"{left} windows are not checked; add the bouts in each, and write '{CHECKED}' for '{TO_CHECK}'"
        )
    require_two_windows(len(marks))
    length = window_length(extents, checked, window)
    windows = divide_footage(extents, length)
    sampled = _find_marked_windows(marks, windows, extents, length)
    require_two_windows(len(sampled))  # a window may have several marks
    for part in sampled:  # unscored time would count as time without any class
        unscored = (bout for bout in checked.get(part.video, ()) if bout.label == UNSCORED)
        if any(min(bout.end, part.end) - max(bout.start, part.start) > TIME_ROUNDING for bout in unscored):
            where = f"{part.video}, {part.start:g} to {part.end:g} s"
            raise DataError(
                f"{where}: is '{CHECKED}' and partly '{UNSCORED}'; score it, or write '{TO_CHECK}'"
            )
    return windows, sampled, length


def require_two_windows(count: int, where: str = "") -> None:
    if count < 2:
        need = f"two or more windows with the label '{CHECKED}' are needed{where}"
        raise DataError(f"{need}, not {count}; --draw writes them")


def _find_marked_windows(
    marks: Sequence[Bout], windows: Sequence[FootageWindow], extents: Extents, length: float
) -> list[FootageWindow]:
    """Return the windows that the marks `checked` or `to check` cover, each once."""

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
