"""Time that no one has labeled yet: neither a class nor background.

A reader states such time by bouts of the label `unscored`, and any kind of file may have this label itself.

W windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from everest.annotations.bout import CHECKED, DRAWN, LONGEST, UNSCORED, Bout, by_video
from everest.video.reader import TOLERANCE

Span = tuple[float, float]  # seconds


def spans_outside(spans: Iterable[Span], end: float = LONGEST) -> list[Span]:
    """The spans from 0 to `end` that none of `spans` covers; these may overlap and need no order."""
    outside, covered = [], 0.0
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if start > covered:
            outside.append((covered, min(start, end)))
        covered = max(covered, stop)
    return [(start, stop) for start, stop in [*outside, (covered, end)] if start < stop]


def unscored_spans(bouts: Iterable[Bout]) -> list[Span]:
    """The time that no one has labeled, in order and without overlaps."""
    return spans_outside(spans_outside((bout.start, bout.end) for bout in bouts if bout.label == UNSCORED))


def unscored_bouts(video: str, scored: Iterable[Span], end: float = LONGEST) -> list[Bout]:
    """A bout for each time of a video, up to its end, outside the spans that are scored."""
    spans = spans_outside(scored, end)
    return [Bout(video=video, start=start, end=stop, label=UNSCORED) for start, stop in spans]


def outside_unscored(bouts: Sequence[Bout]) -> list[Bout]:
    """Replace drawn windows (everest.metrics.budget) by unscored time outside those that were checked."""
    kept = [bout for bout in bouts if bout.label not in (CHECKED, DRAWN)]
    windows = by_video(bout for bout in bouts if bout.label in (CHECKED, DRAWN))
    for video, drawn in windows.items():
        kept += unscored_bouts(video, [(one.start, one.end) for one in drawn if one.label == CHECKED])
    return kept


def join_files(files: Sequence[Sequence[Bout]]) -> list[Bout]:
    """The bouts of a video from several files. Time is unscored if it is so in each of them."""
    if len(files) == 1:
        return list(files[0])
    scored = chain.from_iterable(spans_outside(unscored_spans(bouts)) for bouts in files)
    bouts = [bout for bout in chain(*files) if bout.label != UNSCORED]
    return bouts + unscored_bouts(files[0][0].video, scored)


def unscored_until(bouts: Iterable[Bout], end: float) -> list[Bout]:
    """The bouts, with unscored time only up to the end of their video."""
    return [
        replace(bout, end=min(bout.end, end)) if bout.label == UNSCORED else bout
        for bout in bouts
        if bout.label != UNSCORED or bout.start < end
    ]


def are_scored(
    starts: NDArray[np.float64], ends: NDArray[np.float64], bouts: Iterable[Bout]
) -> NDArray[np.bool_]:
    """Whether each window is free of unscored time, (W,), by the starts and ends of windows, (W,) each."""
    return are_outside(starts, ends, unscored_spans(bouts))


def are_outside(
    starts: NDArray[np.float64], ends: NDArray[np.float64], spans: Iterable[Span]
) -> NDArray[np.bool_]:
    """Whether each window overlaps none of some spans, (W,), by the starts and ends of windows, (W,) each."""
    outside = np.ones(len(starts), np.bool_)
    for start, end in spans:
        outside &= (ends <= start + TOLERANCE) | (starts >= end - TOLERANCE)
    return outside
