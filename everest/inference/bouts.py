"""Bouts of a timeline: neighboring windows of one class, merged.

Windows may overlap: each gives its class to the times that are nearest to its center. Times between windows
that are apart belong to no bout.

W windows, F frames, C classes, G groups of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.annotations.bout import Bout
from everest.video.reader import TOLERANCE, frame_range

Span = tuple[float, float]  # seconds
Class = tuple[str | None, int | None]  # name and index; None of the background


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a video."""

    start: float  # seconds
    end: float
    first: int  # number of its first frame
    length: int  # frames


@dataclass(frozen=True, slots=True, kw_only=True)
class BoutRules:
    """How bouts follow from the probabilities of windows."""

    background: float | None = None  # single-label: less probable windows have no class
    threshold: tuple[float, float] | None = None  # multi-label: high and low; None: the model's, for both
    smooth: float = 0.0  # seconds; see `smoothed`
    min_seconds: float = 0.0  # see `merge_windows`


PLAIN: Final = BoutRules()


def merge_windows(
    windows: Sequence[Window],
    best: Sequence[dict[str, Any]],
    times: NDArray[np.float64],
    *,
    background: float | None,
    min_seconds: float = 0.0,
) -> list[dict[str, Any]]:
    """Return the bouts of W windows in their order, as `everest predict --timeline --json`.

    Args:
        windows: with increasing starts and ends.
        best: the most likely class of each: `label`, `index`, `probability`.
        times: seconds of each frame, (F,).
        background: windows whose highest probability is below this have no class.
        min_seconds: the windows of a shorter bout, or of a shorter stretch without a class, take the class of
            the nearest window of a longer one, unless there is a gap between; if there is none, they have no
            class.
    Returns:
        `{"start", "end", "start_frame", "end_frame", "label", "index", "probability"}` of each bout: seconds
        and frames, the end excluded; null as the class of background; the mean over the windows of their
        highest probability.
    """
    spans = spans_of(windows)
    classes: list[Class] = [
        (each["label"], each["index"])
        if background is None or each["probability"] >= background
        else (None, None)
        for each in best
    ]
    if min_seconds:
        classes = _without_short(classes, spans, min_seconds)
    groups = _groups(classes, spans)
    bouts = []
    for group in groups:
        first, last = group[0], group[-1]
        start, end = spans[first][0], spans[last][1]
        start_frame, end_frame = frame_range(times, start, end)
        label, index = classes[first]
        bouts.append(
            {
                "start": round(start, 3),
                "end": round(end, 3),
                "start_frame": max(start_frame, windows[first].first),
                "end_frame": min(end_frame, windows[last].first + windows[last].length),
                "label": label,
                "index": index,
                "probability": round(fmean(best[number]["probability"] for number in group), 6),
            }
        )
    return bouts


def spans_of(windows: Sequence[Window]) -> list[Span]:
    """Return the seconds of each window without its overlaps, each of which is halved."""
    borders = [(before.end + after.start) / 2 for before, after in pairwise(windows)]
    return [
        (max(window.start, before), min(window.end, after))
        for window, before, after in zip(windows, [-inf, *borders], [*borders, inf], strict=False)
    ]


def _touches(spans: Sequence[Span], number: int) -> bool:
    """Whether a window follows the one before it without a gap."""
    return number > 0 and spans[number][0] <= spans[number - 1][1] + TOLERANCE


def _groups(classes: Sequence[Class], spans: Sequence[Span]) -> list[list[int]]:
    """Return the numbers of neighboring windows of one class, (G,) of (windows,)."""
    groups: list[list[int]] = []
    for number in range(len(spans)):
        if _touches(spans, number) and classes[number] == classes[number - 1]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _without_short(classes: Sequence[Class], spans: Sequence[Span], min_seconds: float) -> list[Class]:
    """Return the classes of windows with the classes of short groups replaced; see `merge_windows`."""
    is_lasting = np.zeros(len(spans), dtype=np.bool_)
    for group in _groups(classes, spans):
        is_lasting[group] = spans[group[-1]][1] - spans[group[0]][0] >= min_seconds - TOLERANCE
    nearest: list[list[int | None]] = []  # lasting window before, and after, each window, without a gap
    for order in (range(len(spans)), range(len(spans) - 1, -1, -1)):
        found: list[int | None] = [None] * len(spans)
        previous: int | None = None  # the window visited last
        for number in order:
            if is_lasting[number]:
                found[number] = number
            elif previous is not None and _touches(spans, max(number, previous)):
                found[number] = found[previous]
            previous = number
        nearest.append(found)
    centers = [(start + end) / 2 for start, end in spans]
    replaced: list[Class] = []
    for center, *both in zip(centers, *nearest, strict=True):
        options = [number for number in both if number is not None]
        best = min(options, key=lambda number: abs(centers[number] - center), default=None)
        replaced.append((None, None) if best is None else classes[best])
    return replaced


def smoothed(windows: Sequence[Window], probabilities: Tensor, seconds: float) -> Tensor:
    """Return the mean over the windows whose centers are at most half of `seconds` away.

    Args:
        probabilities: (W, C).
    """
    centers = np.array([(window.start + window.end) / 2 for window in windows])
    first = torch.from_numpy(np.searchsorted(centers, centers - seconds / 2 - TOLERANCE))
    end = torch.from_numpy(np.searchsorted(centers, centers + seconds / 2 + TOLERANCE))
    sums = torch.cat([torch.zeros(1, probabilities.size(1)), probabilities.double().cumsum(dim=0)])
    means = (sums[end] - sums[first]) / (end - first)[:, None]
    return means.to(probabilities.dtype)


def present_classes(windows: Sequence[Window], probabilities: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Return the classes of each window, (W, C) bool, with hysteresis.

    A class is present from a window of at least its `high` probability, in both directions, for as long as
    the probability is at least `low` and there is no gap.

    Args:
        probabilities: (W, C).
        high, low: (C,).
    """
    present, spans = probabilities >= high, spans_of(windows)
    neighbors = [(number - 1, number) for number in range(len(spans)) if _touches(spans, number)]
    lasts = probabilities >= low
    for before, after in neighbors:
        present[after] |= present[before] & lasts[after]
    for before, after in reversed(neighbors):
        present[before] |= present[after] & lasts[before]
    return present


def bouts_of_classes(
    windows: Sequence[Window],
    probabilities: Tensor,
    present: Tensor,
    names: Sequence[str],
    times: NDArray[np.float64],
    *,
    min_seconds: float = 0.0,
) -> list[dict[str, Any]]:
    """Return the bouts of a multi-label head: of each class, the runs of neighboring windows that have it.

    Args:
        probabilities, present: (W, C), the latter bool.
        names: of the classes.
    Returns:
        The fields of `merge_windows`, by their start and then by class. Bouts of several classes overlap.
    """
    bouts = []
    for index in present.any(dim=0).nonzero()[:, 0].tolist() if len(windows) else ():
        has, absent = {"label": names[index], "index": index}, {"label": None, "index": None}
        columns = zip(present[:, index].tolist(), probabilities[:, index].tolist(), strict=True)
        each = [{**(has if there else absent), "probability": probability} for there, probability in columns]
        merged = merge_windows(windows, each, times, background=None, min_seconds=min_seconds)
        bouts += [bout for bout in merged if bout["index"] is not None]
    return sorted(bouts, key=lambda bout: (bout["start"], bout["index"]))


def automated_bouts(video: str, bouts: Any) -> list[Bout]:
    """The bouts of a video for an annotation file, with the origin `automated`; background has none.

    Args:
        video: its name in the file.
        bouts: of `predict_timeline`: a list, or a list for each head, whose name then precedes the class.
    """
    by_head = bouts if isinstance(bouts, dict) else {"": bouts}
    return [
        Bout(
            video=video,
            start=bout["start"],
            end=bout["end"],
            label=" ".join(filter(None, [head, bout["label"]])),
            origin="automated",
        )
        for head, of_head in by_head.items()
        for bout in of_head
        if bout["label"] is not None
    ]
