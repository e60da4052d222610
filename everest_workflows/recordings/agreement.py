"""The agreement of two observers, or of a model and an observer, on the bouts of the same recordings.

Cohen's kappa (1960) compares each moment: whether both say that a behavior happens, beyond chance. Bouts
agree if their intersection over union is at least 50 %.

F moments, STEP seconds apart; C behaviors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from everest.errors import DataError, join_first
from everest_workflows.annotations.bout import BACKGROUND, MARKS, Bout, Bouts, spans_outside, unscored_spans
from everest_workflows.annotations.codings import BoutFilter, VideoCodings, different_names, join_bouts
from everest_workflows.recordings.bout_metrics import (
    Stretch,
    count_right,
    f1_score,
    find_segments,
    frame_classes,
)

STEP: Final = 0.04  # seconds from one compared moment to the next
OVERLAP: Final = 0.5  # intersection over union of bouts that agree


def bouts_by_observer(read: VideoCodings, bout_filter: BoutFilter) -> dict[str, dict[str, list[Bout]]]:
    """The bouts of each observer, or of each file if the files name no observers, by video."""
    codings = [coding for codings in read.by_video.values() for coding in codings if coding.is_manual]
    if bout_filter.observers:
        codings = list(filter(bout_filter.is_chosen, codings))
    names = different_names(codings) if codings else []
    by_observer = {name: dict[str, list[Bout]]() for name in names}
    for video, of_video in read.by_video.items():
        for name in names:
            of_name = [coding for coding in of_video if coding in codings and name in coding.names]
            if bouts := bout_filter.choose_bouts(join_bouts(video, of_name)) if of_name else []:
                by_observer[name][video] = bouts
    return by_observer


def measure_agreement(observers: Mapping[str, Bouts], ends: Mapping[str, float]) -> dict[str, Any]:
    """Compare the bouts of two observers in the time that both scored.

    Args:
        observers: the bouts of each, by video.
        ends: seconds of the videos; of a video without, the time to the last bout counts.
    Returns:
        `observers`, number of `videos`, `seconds` compared; `agreement`, with the `behavior`, `kappa`,
        `bout_f1` in percent and `seconds` by observer of each; `kappa` over all behaviors, and the
        `confusion` in seconds, first observer first. `kappa` is None if only one class occurs; it and the
        confusion are None if behaviors overlap.
    Raises:
        DataError: there are not two observers, or no video of both.
    """
    names = list(observers)
    if len(names) != 2:
        fix = "give the files of two, or choose two with --observer"
        raise DataError(f"--agreement: {join_first(names, 10) or 'nobody'} coded these videos; {fix}")
    first, second = observers.values()
    videos = [video for video in first if video in second]
    stretches = []
    for video in videos:
        both = [*first[video], *second[video]]
        last = max((bout.end for bout in both if bout.label not in MARKS), default=0.0)
        labeled, predicted = (
            [bout for bout in of_one[video] if bout.label not in (*MARKS, BACKGROUND)]
            for of_one in (first, second)
        )
        parts: Any = {"labeled": labeled, "predicted": predicted, "scores": [1.0] * len(predicted)}
        for start, end in spans_outside(unscored_spans(both), ends.get(video, last)):
            if end - start > STEP:
                stretches.append(Stretch(times=np.arange(start, end - STEP / 2, STEP), end=end, **parts))
    if not stretches:
        raise DataError(f"--agreement: no time is scored by both {names[0]} and {names[1]}")
    return {"observers": names, "videos": len(videos), **_compare(stretches, names)}


def _compare(stretches: Sequence[Stretch], names: Sequence[str]) -> dict[str, Any]:
    """Compare the bouts of two observers, which are `labeled` and `predicted` of the stretches."""
    behaviors = sorted({bout.label for each in stretches for bout in (*each.labeled, *each.predicted)})
    pairs = [
        (frame_classes(each, each.labeled, behaviors), frame_classes(each, each.predicted, behaviors))
        for each in stretches
    ]
    flags = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]  # two of (F, C)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(behaviors):
        segments = [tuple(find_segments(part[:, [index]]) for part in pair) for pair in pairs]
        right = sum(count_right(labeled, predicted, OVERLAP) for labeled, predicted in segments)
        total = sum(len(part) for each in segments for part in each)
        columns = [part[:, index] for part in flags]
        seconds = (round(STEP * int(column.sum()), 3) for column in columns)
        row = {"behavior": name, "kappa": _kappa(*columns), "bout_f1": f1_score(right, total)}
        rows.append({**row, "seconds": dict(zip(names, seconds, strict=True))})
    result: dict[str, Any] = {"seconds": round(STEP * len(flags[0]), 3), "agreement": rows}
    if any((part.sum(axis=1) > 1).any() for part in flags):
        return {**result, "kappa": None, "confusion": None}
    labels = [*behaviors, BACKGROUND]
    classes = [np.column_stack([part, ~part.any(axis=1)]).argmax(axis=1) for part in flags]  # (F,)
    table = (STEP * confusion_matrix(classes[0], classes[1], labels=range(len(labels)))).round(3).tolist()
    confusion = {name: dict(zip(labels, row, strict=True)) for name, row in zip(labels, table, strict=True)}
    return {**result, "kappa": _kappa(*classes), "confusion": confusion}


def _kappa(first: Any, second: Any) -> float | None:
    """Cohen's kappa of (F,) classes; None if both are the same class everywhere."""
    if len({*np.unique(first), *np.unique(second)}) < 2:
        return None
    return round(float(cohen_kappa_score(first, second)), 4)
