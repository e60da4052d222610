"""Bouts of predictions: neighboring windows of one class are merged.

Windows may overlap: a time has the class of the window whose center is nearest. The time in a gap between
windows belongs to no bout.

W windows, F frames, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Head, Heads
from everest.errors import OptionError
from everest.system.types import Floats
from everest.video.reader import frame_range
from everest.video.times import TIME_TOLERANCE
from everest_workflows.annotations.bout import BACKGROUND, Bout

NO_CLASS: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedBout:
    """A bout that a model found. It does not include `end` and `end_frame`."""

    start: float  # seconds
    end: float
    start_frame: int
    end_frame: int
    label: str | None  # None: windows of a single-label head without a probable class
    index: int | None  # of the class in its head
    probability: float  # mean over the windows; without a class, of the most likely class

    @property
    def has_class(self) -> bool:
        """Whether it has a class that is not the background."""
        return self.label not in (None, BACKGROUND)

    def to_bout(self, *, video: str = "", head: str = "", subject: str = "") -> Bout:
        """As a bout of an annotation file, of the origin `automated`; the head's name precedes the class."""
        label = " ".join(filter(None, [head, self.label]))
        who: Any = {"video": video, "origin": "automated", "subject": subject}
        return Bout(start=self.start, end=self.end, label=label, **who)


PredictedBouts = dict[str, list[PredictedBout]]  # of a recording, by head; a single head may have no name


@dataclass(frozen=True, kw_only=True)
class BoutRules:
    """How bouts follow from the probabilities of windows."""

    background: float | None = None  # single-label: less probable windows have no class
    threshold: float | None = None  # multi-label: less probable classes are absent; None: the model's
    smooth: float = 0.0  # seconds; see `smooth_outputs`
    min_seconds: float = 0.0  # see `drop_short_runs`

    def check(self, heads: Heads) -> None:
        """Raise OptionError for a rule that is out of range, or that fits no head."""
        tasks = {head.task for head in heads}
        for name, value, task in (
            ("background", self.background, "single-label"),
            ("threshold", self.threshold, MULTI_LABEL),
        ):
            if value is not None and task not in tasks:
                raise OptionError(
                    f"{name}: is only for {task} models; this one is {', '.join(sorted(tasks))}"
                )
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name}: must be from 0 to 1, not {value}")
        for name, seconds in (("smooth", self.smooth), ("min-seconds", self.min_seconds)):
            if not 0 <= seconds < inf:
                raise OptionError(f"{name}: must be at least 0 seconds, not {seconds}")

    def options(self, saved: BoutRules | None = None) -> str:
        """The options with which a command changes the saved rules (None: no rules) into these rules."""
        others = vars(saved or NO_RULES)
        changed = {name: value for name, value in vars(self).items() if value not in (None, others[name])}
        return " ".join(f"--{name.replace('_', '-')} {value:.12g}" for name, value in changed.items())


NO_RULES: Final = BoutRules()


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowSpans:
    """The windows of a video or a segment of it, with increasing starts and ends."""

    starts: Floats  # (W,) seconds
    ends: Floats  # (W,)
    borders: Floats  # (F + 1,) seconds between the frames of the video; (1,) of an unreadable one
    frames: tuple[int, int]  # first frame, and the one after the last, of the segment

    @property
    def times(self) -> Floats:
        """(F,) seconds of each frame of the video."""
        return self.borders[:-1]

    @cached_property
    def spans(self) -> Floats:
        """(W, 2) seconds; overlaps are divided in the middle."""
        borders = (self.ends[:-1] + self.starts[1:]) / 2
        spans = np.stack([self.starts, self.ends], axis=1)
        spans[1:, 0] = np.maximum(spans[1:, 0], borders)
        spans[:-1, 1] = np.minimum(spans[:-1, 1], borders)
        return spans

    def find_runs(self, classes: NDArray[Any]) -> Iterator[tuple[int, int]]:
        """Yield the first window, and the one after the last, of each run of equal classes without gaps."""
        is_new = (classes[1:] != classes[:-1]) | (self.spans[1:, 0] > self.spans[:-1, 1] + TIME_TOLERANCE)
        borders = [0, *(np.flatnonzero(is_new) + 1).tolist(), len(classes)]
        return ((first, after) for first, after in pairwise(borders) if first < after)

    @property
    def covered_spans(self) -> list[tuple[float, float]]:
        """The seconds of the windows, joined where there is no gap between them."""
        runs = self.find_runs(np.zeros(len(self.starts)))
        return [(float(self.spans[first, 0]), float(self.spans[after - 1, 1])) for first, after in runs]


def find_bouts(
    windows: WindowSpans, outputs: Floats, head: Head, names: Sequence[str], rules: BoutRules
) -> list[PredictedBout]:
    """Return the bouts of a head by start, then by class; bouts of a multi-label head may overlap.

    Args:
        outputs: (W, C) probabilities; a regression head has no bouts.
    """
    if head.task == "regression" or not len(outputs):
        return []
    if rules.smooth:
        outputs = smooth_outputs(windows, outputs, rules.smooth)
    is_multi_label = head.task == MULTI_LABEL
    columns: list[tuple[NDArray[np.int64], Floats]]  # the class of each window and its probability, (W,) each
    if is_multi_label:  # a column for each class that is present anywhere
        thresholds = head.thresholds if rules.threshold is None else rules.threshold
        is_present = outputs >= np.array(thresholds, np.float32)  # (W, C)
        present_classes = np.flatnonzero(is_present.any(axis=0)).tolist()
        columns = [(np.where(is_present[:, i], i, NO_CLASS), outputs[:, i]) for i in present_classes]
    else:
        best = outputs.max(axis=1)
        columns = [(np.where(best < (rules.background or 0.0), NO_CLASS, outputs.argmax(axis=1)), best)]
    bouts: list[PredictedBout] = []
    for classes, probabilities in columns:
        if rules.min_seconds:
            classes = drop_short_runs(windows, classes, rules.min_seconds)
        for first, after in windows.find_runs(classes):
            index = None if classes[first] == NO_CLASS else int(classes[first])
            if is_multi_label and index is None:
                continue
            start, end = float(windows.spans[first, 0]), float(windows.spans[after - 1, 1])
            start_frame, end_frame = frame_range(windows.times, start, end)
            bouts.append(
                PredictedBout(
                    start=round(start, 3),
                    end=round(end, 3),
                    start_frame=max(start_frame, windows.frames[0]),
                    end_frame=min(end_frame, windows.frames[1]),
                    label=None if index is None else names[index],
                    index=index,
                    probability=round(float(probabilities[first:after].mean(dtype=np.float64)), 6),
                )
            )
    return sorted(bouts, key=lambda bout: (bout.start, bout.index)) if is_multi_label else bouts


def drop_short_runs(windows: WindowSpans, classes: NDArray[np.int64], seconds: float) -> NDArray[np.int64]:
    """Return the classes, (W,), without the runs that are shorter than `seconds`.

    Windows of a short run take the class of the nearest window of a longer run, across no gap. Without such
    a run they have no class.
    """
    new_classes = np.full_like(classes, NO_CLASS)
    centers = windows.spans.mean(axis=1)
    is_lasting = np.zeros(len(classes), np.bool_)
    for first, after in windows.find_runs(classes):
        length = windows.spans[after - 1, 1] - windows.spans[first, 0]
        is_lasting[first:after] = length >= seconds - TIME_TOLERANCE
    for first, after in windows.find_runs(np.zeros_like(classes)):  # stretches without a gap
        lasting = first + np.flatnonzero(is_lasting[first:after])
        for window in range(first, after) if len(lasting) else ():
            position = int(np.searchsorted(lasting, window))
            neighbors = lasting[max(position - 1, 0) : position + 1]  # before and after, or the window itself
            nearest = min(neighbors, key=lambda neighbor: abs(centers[neighbor] - centers[window]))
            new_classes[window] = classes[nearest]
    return new_classes


def smooth_outputs(windows: WindowSpans, outputs: Floats, seconds: float) -> Floats:
    """Return the mean of (W, C) over the windows whose centers are at most half of `seconds` away."""
    centers = (windows.starts + windows.ends) / 2
    first = np.searchsorted(centers, centers - seconds / 2 - TIME_TOLERANCE)
    end = np.searchsorted(centers, centers + seconds / 2 + TIME_TOLERANCE)
    sums = np.concatenate([np.zeros((1, outputs.shape[1])), outputs.cumsum(axis=0, dtype=np.float64)])
    return ((sums[end] - sums[first]) / (end - first)[:, None]).astype(outputs.dtype)
