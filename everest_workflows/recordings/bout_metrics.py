"""The agreement of predicted bouts with a person's bouts, by the metrics of the field.

Temporal segmentation: frame accuracy, edit score and F1@k of Lea et al. 2017 (Temporal Convolutional Networks
for Action Segmentation and Detection), computed as in the official code of MS-TCN (Farha and Gall 2019).
Temporal detection: mAP at a temporal intersection over union (tIoU), as in the program of ActivityNet (Caba
Heilbron et al. 2015), which is also used for THUMOS14.

Frames without a bout, and bouts of the class `background`, are background. Background frames count only in
the frame accuracy. Classes may overlap. Every fraction is in percent, or None if there is nothing to measure.

F frames, C classes, P predicted and T true segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everest.metrics.intervals import bootstrap
from everest.system.types import Floats
from everest_workflows.annotations.bout import BACKGROUND, Bout

F1_OVERLAPS: Final = (0.10, 0.25, 0.50)  # overlaps of F1@k
MAP_TIOU: Final = 0.5  # tIoU of mAP
MIN_SECONDS: Final = 2.0  # heuristic: of a class in the mean
MIN_GAP: Final = 1.0  # heuristic: seconds; a shorter gap at an end of a recording is no background
TIOU_ROUNDING: Final = 1e-9  # 0.1 s has no exact binary form


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stretch:
    """A stretch of a video, with the bouts of a person and of a model."""

    times: Floats  # (F,) seconds from the first frame, F > 0
    end: float  # seconds: when the last frame ends
    labeled: Sequence[Bout]
    predicted: Sequence[Bout]
    scores: Sequence[float]  # score of each predicted bout; mAP ranks bouts by it
    group: str = ""  # recordings of one group, such as an animal, are not independent


class Segment(NamedTuple):
    """A maximal run of frames that have a class."""

    first: int
    end: int  # excluded
    label: int  # index of the class


def f1_score(right: int, total: int) -> float | None:
    """F1 in percent: `right` predictions, `total` true plus predicted items; None if `total` is 0."""
    return _percent(2 * right / total) if total else None


def timeline_metrics(stretches: Sequence[Stretch]) -> dict[str, Any]:
    """Compute all metrics over some stretches.

    Returns:
        `frame_accuracy`, its 95 % `frame_interval` over groups (None if there is only one),
        `mean_class_accuracy` (over the frames of each class, including background), `too_short` (the seconds
        of the classes with less than `MIN_SECONDS` of truth, not counting short gaps at the ends, which this
        mean leaves out), `majority_accuracy`
        (of always predicting the most frequent class), `edit`, `f1@10`, `f1@25`, `f1@50`, `map@0.5`, the
        number of `frames`, and for each of the `classes` its `name`, `f1` (of its frames), `ap@0.5`, and
        `truth` and `predicted`, each with `bouts` (their number) and `seconds`.
    """
    true_bouts = [bout for stretch in stretches for bout in stretch.labeled]
    predicted_bouts = [bout for stretch in stretches for bout in stretch.predicted]
    names = sorted({bout.label for bout in (*true_bouts, *predicted_bouts)} - {BACKGROUND})
    labeled = [frame_classes(stretch, stretch.labeled, names) for stretch in stretches]  # (F, C) each
    predicted = [frame_classes(stretch, stretch.predicted, names) for stretch in stretches]
    segments = list(zip(map(find_segments, labeled), map(find_segments, predicted), strict=True))
    num_segments = sum(len(side) for pair in segments for side in pair)
    num_right = {overlap: sum(count_right(*pair, overlap) for pair in segments) for overlap in F1_OVERLAPS}
    precisions = [bout_average_precision(stretches, name, tiou=MAP_TIOU) for name in names]
    known_precisions = [precision for precision in precisions if precision is not None]
    num_true, num_predicted, num_agreed = (
        np.sum([frames.sum(axis=0) for frames in by_stretch], axis=0)  # (C,)
        for by_stretch in (labeled, predicted, map(np.logical_and, labeled, predicted))
    )
    return {
        **_frame_metrics(stretches, labeled, predicted, names),
        "edit": _percent(fmean(edit_score(*pair) for pair in segments)),
        **{f"f1@{100 * overlap:.0f}": f1_score(right, num_segments) for overlap, right in num_right.items()},
        "map@0.5": round(fmean(known_precisions), 4) if known_precisions else None,
        "frames": sum(map(len, labeled)),
        "classes": [
            {
                "name": name,
                "f1": f1_score(int(num_agreed[index]), int(num_true[index] + num_predicted[index])),
                "ap@0.5": precisions[index],
                "truth": _bouts_and_seconds(bout for bout in true_bouts if bout.label == name),
                "predicted": _bouts_and_seconds(bout for bout in predicted_bouts if bout.label == name),
            }
            for index, name in enumerate(names)
        ],
    }


def _frame_metrics(
    stretches: Sequence[Stretch],
    labeled: Sequence[NDArray[np.bool_]],
    predicted: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
) -> dict[str, Any]:
    """The metrics of `timeline_metrics` that count frames, from the classes (F, C) of each stretch."""
    true_frames, predicted_frames = (  # (F, C + 1) of all stretches, the background last
        np.concatenate([np.column_stack([frames, ~frames.any(axis=1)]) for frames in by_stretch])
        for by_stretch in (labeled, predicted)
    )
    is_right = (true_frames == predicted_frames).all(axis=1)  # (F,)
    num_true = true_frames.sum(axis=0)  # (C + 1,)
    recalls = (true_frames & predicted_frames).sum(axis=0) / np.maximum(num_true, 1)  # (C + 1,)
    lengths = np.concatenate([np.diff(stretch.times, append=stretch.end) for stretch in stretches])  # (F,)
    seconds = (lengths @ true_frames).round(3)  # (C + 1,)
    is_short = (num_true > 0) & (seconds < MIN_SECONDS)
    is_short[-1] = num_true[-1] > 0 and sum(map(_background_seconds, stretches, labeled)) < MIN_SECONDS
    if is_short.sum() == (num_true > 0).sum():  # all footage is short
        is_short[:] = False
    num_most_frequent = np.unique(true_frames, axis=0, return_counts=True)[1].max()
    return {
        "frame_accuracy": _percent(is_right.mean()),
        "frame_interval": _accuracy_interval(stretches, is_right),
        "mean_class_accuracy": _percent(recalls[(num_true > 0) & ~is_short].mean()),
        "too_short": {[*names, BACKGROUND][i]: float(seconds[i]) for i in np.flatnonzero(is_short)},
        "majority_accuracy": _percent(num_most_frequent / len(true_frames)),
    }


def _accuracy_interval(stretches: Sequence[Stretch], is_right: NDArray[np.bool_]) -> list[float] | None:
    """The 95 % interval of the frame accuracy, in percent, over groups; None for a single group."""
    groups = [stretch.group for stretch in stretches]
    if len(set(groups)) == 1:
        return None
    total = np.array([len(stretch.times) for stretch in stretches])  # (stretches,) frames
    starts = np.cumsum([0, *total])[:-1]
    right = np.add.reduceat(is_right, starts, dtype=np.float64)  # (stretches,)
    (ends,) = bootstrap(lambda counts: {"": float(counts @ right / (counts @ total))}, groups).values()
    return [*map(_percent, ends)]


def frame_classes(stretch: Stretch, bouts: Sequence[Bout], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether each frame has each class, (F, C). Times of bouts are rounded to the nearest frame.

    Annotation files have milliseconds, which are not exactly frame times. A point event has no frames.
    """
    next_times = np.append(stretch.times[1:], stretch.end)
    borders = (stretch.times + next_times) / 2  # (F,) times up to which a frame is the nearest
    classes = np.zeros((len(borders), len(names)), dtype=np.bool_)
    column = {name: index for index, name in enumerate(names)}
    for bout in bouts:
        if bout.label in column:
            first, end = np.searchsorted(borders, [bout.start, bout.end])
            classes[first:end, column[bout.label]] = True
    return classes


def _background_seconds(stretch: Stretch, labeled: NDArray[np.bool_]) -> float:
    """The seconds without a label (F, C), but for less than `MIN_GAP` at either end of a stretch."""
    times = np.append(stretch.times, stretch.end)
    gaps = find_segments(np.column_stack([~labeled.any(axis=1)]))
    seconds = np.array([times[gap.end] - times[gap.first] for gap in gaps]).round(3)
    is_inside = np.array([gap.first > 0 and gap.end < len(labeled) for gap in gaps], np.bool_)
    return float(seconds[is_inside | (seconds >= MIN_GAP)].sum())


def find_segments(frames: NDArray[np.bool_]) -> list[Segment]:
    """Return the segments of frames (F, C), sorted by start, then by class."""
    edges = np.diff(np.pad(frames, ((1, 1), (0, 0))).astype(np.int8), axis=0)  # (F + 1, C)
    segments = []
    for index, column in enumerate(edges.T):
        borders = zip(np.flatnonzero(column > 0).tolist(), np.flatnonzero(column < 0).tolist(), strict=True)
        segments += [Segment(start, end, index) for start, end in borders]
    return sorted(segments, key=lambda segment: (segment.first, segment.label))


def edit_score(labeled: Sequence[Segment], predicted: Sequence[Segment]) -> float:
    """Return 1 - d / n: d is the Levenshtein distance of the classes, n the length of the longer sequence.

    It measures the order of segments, regardless of their times. Two empty sequences score 1 (our choice).
    """
    row = np.arange(len(labeled) + 1)  # distances from the prefixes of `labeled`
    classes = np.array([segment.label for segment in labeled])
    for i, segment in enumerate(predicted, start=1):
        changed = row[:-1] + (classes != segment.label)
        best = np.append(i, np.minimum(changed, row[1:] + 1))
        # Insertions: each value exceeds the previous value by at most one.
        row = np.minimum.accumulate(best - np.arange(len(best))) + np.arange(len(best))
    return 1 - row[-1] / max(len(labeled), len(predicted), 1)


def count_right(labeled: Sequence[Segment], predicted: Sequence[Segment], overlap: float) -> int:
    """Count the correct predicted segments of a video, for F1@k.

    A predicted segment is right if the segment of its class that it overlaps most has an intersection over
    union of at least `overlap`, and no earlier prediction has matched it; as in MS-TCN.
    """
    matched: set[int] = set()
    starts, ends, classes = np.array(labeled, dtype=np.int64).reshape(-1, 3).T  # (T,) each
    for first, end, index in predicted if len(labeled) else ():
        shared = np.minimum(ends, end) - np.maximum(starts, first)
        union = np.maximum(ends, end) - np.minimum(starts, first)
        ratios = np.where(classes == index, shared / union, 0.0)
        best = int(ratios.argmax())
        if ratios[best] >= overlap:
            matched.add(best)
    return len(matched)


def bout_average_precision(stretches: Sequence[Stretch], name: str, *, tiou: float) -> float | None:
    """Return the average precision of a class, in percent; None without a true bout.

    In order of falling certainty, each prediction takes the free true bout with the largest tIoU, if that is
    at least `tiou`. The precision at a recall is interpolated: the highest at this or any higher recall.
    Point events have no tIoU, and are left out.
    """
    ranked: list[tuple[float, int, Floats]] = []  # score, index of the stretch, (T,) tIoU with true bouts
    free: list[NDArray[np.bool_]] = []  # (T,) per stretch: true bouts not taken yet
    for i, stretch in enumerate(stretches):
        spans = [(x.start, x.end) for x in stretch.labeled if x.label == name and x.seconds > 0]
        starts, ends = np.array(spans).reshape(-1, 2).T
        free.append(np.ones(len(spans), dtype=np.bool_))
        for bout, score in zip(stretch.predicted, stretch.scores, strict=True):
            if bout.label == name and bout.seconds > 0:
                shared = (np.minimum(ends, bout.end) - np.maximum(starts, bout.start)).clip(min=0)
                ranked.append((score, i, shared / (ends - starts + bout.seconds - shared)))
    total = sum(map(len, free))
    if not total:
        return None
    right = np.zeros(len(ranked))
    for rank, (_, i, ratios) in enumerate(sorted(ranked, key=lambda entry: -entry[0])):
        candidates = np.where(free[i], ratios, -1.0)
        if len(candidates) and candidates.max() >= tiou - TIOU_ROUNDING:
            free[i][candidates.argmax()] = False
            right[rank] = 1
    precision = right.cumsum() / np.arange(1, len(ranked) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return _percent(float((right * highest).sum()) / total)


def _bouts_and_seconds(bouts: Iterator[Bout]) -> dict[str, float]:
    seconds = [bout.seconds for bout in bouts]
    return {"bouts": len(seconds), "seconds": round(sum(seconds), 3)}


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), 4)
