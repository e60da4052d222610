"""Bouts of a timeline: neighboring windows of one class, merged.

Windows may overlap: each gives its class to the times that are nearest to its center. Times between windows
that are apart belong to no bout.

W windows, F frames, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from everest.annotations.bout import Bout
from everest.video.reader import TOLERANCE, frame_range


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a video."""

    start: float  # seconds
    end: float
    first: int  # number of its first frame
    length: int  # frames


def merge_windows(
    windows: Sequence[Window],
    best: Sequence[dict[str, Any]],
    times: NDArray[np.float64],
    *,
    background: float | None,
) -> list[dict[str, Any]]:
    """Return the bouts of W windows in their order, as `everest predict --timeline --json`.

    Args:
        windows: with increasing starts and ends.
        best: the most likely class of each: `label`, `index`, `probability`.
        times: seconds of each frame, (F,).
        background: windows whose highest probability is below this have no class.
    Returns:
        `{"start", "end", "start_frame", "end_frame", "label", "index", "probability"}` of each bout: seconds
        and frames, the end excluded; null as the class of background; the mean over the windows of their
        highest probability.
    """
    # The seconds of each window without its overlaps, each of which is halved.
    borders = [(before.end + after.start) / 2 for before, after in pairwise(windows)]
    spans = [
        (max(window.start, before), min(window.end, after))
        for window, before, after in zip(windows, [-inf, *borders], [*borders, inf], strict=False)
    ]
    classes = [
        (each["label"], each["index"])
        if background is None or each["probability"] >= background
        else (None, None)
        for each in best
    ]
    groups: list[list[int]] = []  # numbers of windows
    for number, (start, _) in enumerate(spans):
        continues = number > 0 and start <= spans[number - 1][1] + TOLERANCE
        if continues and classes[number] == classes[number - 1]:
            groups[-1].append(number)
        else:
            groups.append([number])
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


def bouts_of_classes(
    windows: Sequence[Window],
    probabilities: Tensor,
    present: Tensor,
    names: Sequence[str],
    times: NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Return the bouts of classes of which a window has any number: neighboring windows that have a class.

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
        merged = merge_windows(windows, each, times, background=None)
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
