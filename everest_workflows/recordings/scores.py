"""Timelines as files of annotations, and their scores against the annotations of a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from everest.config.heads import Heads
from everest.errors import DataError, RecipeError, did_you_mean
from everest.lists.classes import Classes
from everest.system.events import Emit, notice, warning
from everest.system.text import plural
from everest.system.types import Span
from everest.video.frame_borders import VideoTimes
from everest.video.reader import frame_range
from everest_workflows.annotations.bout import (
    BACKGROUND,
    CHECKED,
    MARKS,
    UNSCORED,
    Bout,
    Bouts,
    spans_outside,
    unscored_bouts,
    unscored_spans,
)
from everest_workflows.annotations.codings import (
    BoutFilter,
    find_rivals,
    read_codings,
    read_video_annotations,
)
from everest_workflows.annotations.formats import write_annotations
from everest_workflows.recordings.agreement import bouts_by_observer, measure_agreement
from everest_workflows.recordings.bout_metrics import Stretch, timeline_metrics
from everest_workflows.recordings.bouts import PredictedBout, PredictedBouts
from everest_workflows.recordings.timelines import Timelines, VideoTimeline

AnyBout = TypeVar("AnyBout", Bout, PredictedBout)


def check_one_head(heads: Heads, *, option: str) -> None:
    """Raise RecipeError unless the model of timelines has a single head, of classes."""
    if len(heads) != 1 or heads[0].task == "regression":
        tasks = ", ".join(f"{head.name} ({head.task})".strip() for head in heads)
        raise RecipeError(f"{option}: needs a model of one head of classes; this one has {tasks}")


def write_bouts(
    file: Path, file_format: str, timelines: Timelines, bouts: Sequence[PredictedBouts], paths: Sequence[str]
) -> list[Path]:
    """Write the bouts of the readable videos among `paths`, without background; returns the files."""
    classes = timelines.classes
    names = [
        " ".join(filter(None, [head.name, name]))
        for head in classes.heads
        if head.task != "regression"
        for name in classes.names_of_head(head)
        if name != BACKGROUND
    ]
    all_bouts: list[Bout] = []
    times: dict[str, VideoTimes] = {}
    for video, video_bouts in zip(timelines.videos, bouts, strict=True):
        if video.path in paths and len(video.starts):
            all_bouts += [
                bout.to_bout(video=video.path, head=head, subject=timelines.subject)
                for head, head_bouts in video_bouts.items()
                for bout in head_bouts
                if bout.has_class
            ]
            times[video.path] = VideoTimes(borders=video.borders, fps=video.fps)
    return write_annotations(file, all_bouts, file_format, times=times, classes=names) if times else []


def score_timelines(
    timelines: Timelines,
    bouts: Sequence[PredictedBouts],
    labeled: Bouts,
    *,
    emit: Emit,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the metrics of timelines; a video without annotations is left out, with a notice.

    Unscored time does not count: each stretch between is scored as a separate timeline.

    Args:
        bouts: of `Timelines.bouts`. Only the time of windows is scored.
        labeled: the bouts of a person, by the path of a video.
        groups: by the path of a recording; those of one group are not independent. None: all are.
    Returns:
        `timeline_metrics`, and `unscored`: the seconds that do not count.
    """
    stretches: list[Stretch] = []
    videos = 0
    unscored = 0.0  # seconds
    for recording, by_head in zip(timelines.videos, bouts, strict=True):
        true_bouts = labeled.get(recording.path)
        if true_bouts is None:
            emit(notice(f"{recording.video}: not scored: no annotations"))
        elif len(recording.starts):
            extent_start, end = recording.extent
            gaps = spans_outside(recording.covered_spans, end)
            scored = spans_outside([*gaps, *unscored_spans(true_bouts)], end)
            (predicted,) = by_head.values()
            group = (groups or {}).get(recording.path, recording.path)
            recording_stretches = _split_into_stretches(recording, predicted, true_bouts, scored, group)
            stretches += recording_stretches
            videos += bool(recording_stretches)
            unscored += end - extent_start - sum(stop - start for start, stop in scored)
    if unscored > 1e-6:
        emit(notice(f"not scored: {unscored:.1f} s without labels or without windows"))
    if not stretches:
        reason = "all time of the videos is unscored" if unscored else "no annotated video could be read"
        raise DataError(reason)
    return {**timeline_metrics(stretches), "videos": videos, "unscored": round(unscored, 3)}


def read_truth(
    file: Path, videos: Sequence[str], classes: Classes, bout_filter: BoutFilter, emit: Emit
) -> tuple[Bouts, dict[str, dict[str, list[Bout]]]]:
    """Read the bouts of --truth by recording, and those of each of several observers who differ.

    What is left out is reported, and which bouts a model predicted. Annotations that share no class with the
    model are refused; classes that the model lacks are reported.
    """
    labels = read_video_annotations([file], videos, bout_filter=bout_filter)
    for text in labels.notices:
        emit(notice(text))
    if labels.uncorrected_text:
        emit(warning(f"--truth has {labels.uncorrected_text}: scores on them are not accuracy"))
    check_one_head(classes.heads, option="--truth")
    names = classes.names_of_head(classes.heads[0])
    counts = _bouts_by_class(labels.bouts)
    unknown_labels = [label for label in counts if label not in names]
    if unknown_labels and len(unknown_labels) == len(counts):
        description = f"'{unknown_labels[0]}'{did_you_mean(unknown_labels[0], names)}"
        raise DataError(f"the annotations have no class of the model: {description}")
    for label in unknown_labels:
        description = f"'{label}' ({plural(counts[label], 'labeled bout')}){did_you_mean(label, names)}"
        emit(notice(f"the model has no class {description}"))
    read = read_codings([file], videos, bout_filter=bout_filter)
    are_rivals = any(find_rivals(codings) for codings in read.by_video.values())
    observers = bouts_by_observer(read, replace(bout_filter, observers=())) if are_rivals else {}
    return labels.bouts, observers or {"annotations": labels.bouts}


def compare_with_observers(
    timelines: Timelines, bouts: Sequence[PredictedBouts], observers: Mapping[str, Bouts]
) -> list[dict[str, Any]]:
    """The agreement of observers with each other, and of the model with each, by `measure_agreement`."""
    by_model: dict[str, list[Bout]] = {}
    for recording, by_head in zip(timelines.videos, bouts, strict=True):
        if len(recording.starts):
            found = [bout.to_bout() for each in by_head.values() for bout in each if bout.has_class]
            by_model[recording.path] = [*found, *unscored_bouts(recording.path, recording.covered_spans)]
    ends = {each.path: each.extent[1] for each in timelines.videos if each.path in by_model}
    raters = [*observers.items(), ("model", by_model)]
    pairs = [dict(pair) for pair in combinations(raters, 2)]
    return [measure_agreement(pair, ends) for pair in pairs if set.intersection(*map(set, pair.values()))]


def refuse_unknown_classes(true_bouts: Bouts, names: Sequence[str], *, source: Path) -> None:
    """Raise DataError for a class of checked windows that the model lacks, such as a misspelled one."""
    for label, count in _bouts_by_class(true_bouts).items():
        if label not in names:
            hint = did_you_mean(label, [*names, CHECKED])
            raise DataError(f"{source}: the model has no class '{label}' ({plural(count, 'bout')}){hint}")


def _bouts_by_class(true_bouts: Bouts) -> Counter[str]:
    """The number of annotated bouts of each class, without background."""
    labels = (bout.label for bouts in true_bouts.values() for bout in bouts)
    return Counter(label for label in labels if label not in (BACKGROUND, *MARKS))


def _split_into_stretches(
    recording: VideoTimeline,
    predicted: Sequence[PredictedBout],
    labeled: Sequence[Bout],
    scored: list[Span],
    group: str,
) -> list[Stretch]:
    """The bouts of a recording in each stretch of time that has a frame."""
    times = recording.times
    true_bouts = [bout for bout in labeled if bout.label != UNSCORED]
    predicted_bouts = [bout for bout in predicted if bout.has_class]
    stretches = []
    for start, end in scored:
        # Programs round times to milliseconds.
        first, last = frame_range(times, start - 0.0005, end - 0.0005)
        if first < last:
            clipped = _clip_bouts(predicted_bouts, start, end)
            stretches.append(
                Stretch(
                    times=times[first:last],
                    end=end,
                    labeled=_clip_bouts(true_bouts, start, end),
                    predicted=[bout.to_bout() for bout in clipped],
                    scores=[bout.probability for bout in clipped],
                    group=group,
                )
            )
    return stretches


def _clip_bouts(bouts: Sequence[AnyBout], start: float, end: float) -> list[AnyBout]:
    """The parts of bouts in a stretch of time."""
    return [
        replace(bout, start=max(bout.start, start), end=min(bout.end, end))
        for bout in bouts
        if bout.start < end and (bout.end > start or bout.start >= start)
    ]
