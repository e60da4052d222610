"""Timelines as files of annotations, and their scores against the annotations of a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from everest.annotations.bout import (
    BACKGROUND,
    CHECKED,
    MARKS,
    UNSCORED,
    Bout,
    Bouts,
    spans_outside,
    unscored_spans,
)
from everest.annotations.formats import write_annotations
from everest.annotations.matching import VideoTimes
from everest.config.heads import Heads
from everest.errors import DataError, RecipeError, did_you_mean
from everest.inference.bouts import PredictedBout, PredictedBouts
from everest.inference.timelines import Timelines, VideoTimeline
from everest.lists.classes import Classes
from everest.metrics.timeline import Stretch, timeline_metrics
from everest.system.events import Report, notice
from everest.system.text import counted
from everest.system.types import Span
from everest.video.reader import frame_range

AnyBout = TypeVar("AnyBout", Bout, PredictedBout)


def check_one_head(heads: Heads, *, option: str) -> None:
    """Raise RecipeError unless the model of timelines has a single head, of classes."""
    if len(heads) != 1 or heads[0].task == "regression":
        tasks = ", ".join(f"{head.name} ({head.task})".strip() for head in heads)
        raise RecipeError(f"{option}: needs a model of one head of classes; this one has {tasks}")


def write_bouts(
    file: Path, kind: str, timelines: Timelines, bouts: Sequence[PredictedBouts], paths: Sequence[str]
) -> list[Path]:
    """Write the bouts of the readable videos among `paths`, without background; returns the files."""
    classes = timelines.classes
    names = [
        " ".join(filter(None, [head.name, name]))
        for head in classes.heads
        if head.task != "regression"
        for name in classes.of_head(head)
        if name != BACKGROUND
    ]
    all_bouts: list[Bout] = []
    times: dict[str, VideoTimes] = {}
    for video, video_bouts in zip(timelines.videos, bouts, strict=True):
        if video.path in paths and len(video.starts):
            all_bouts += [
                bout.as_bout(video=video.path, head=head)
                for head, head_bouts in video_bouts.items()
                for bout in head_bouts
                if bout.has_class
            ]
            times[video.path] = VideoTimes(borders=video.borders, fps=video.fps)
    return write_annotations(file, all_bouts, kind, times=times, classes=names) if times else []


def score_timelines(
    timelines: Timelines,
    bouts: Sequence[PredictedBouts],
    labeled: Bouts,
    *,
    report: Report,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the metrics of timelines; a video without annotations is left out, with a notice.

    Unscored time does not count: each stretch between is scored as a timeline of its own.

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
            report(notice(f"{recording.video}: not scored: no annotations"))
        elif len(recording.starts):
            begin, end = recording.extent
            gaps = spans_outside(recording.covered, end)
            scored = spans_outside([*gaps, *unscored_spans(true_bouts)], end)
            (predicted,) = by_head.values()
            group = (groups or {}).get(recording.path, recording.path)
            recording_stretches = _stretches(recording, predicted, true_bouts, scored, group)
            stretches += recording_stretches
            videos += bool(recording_stretches)
            unscored += end - begin - sum(stop - start for start, stop in scored)
    if unscored > 1e-6:
        report(notice(f"not scored: {unscored:.1f} s without labels or without windows"))
    if not stretches:
        why = "all time of the videos is unscored" if unscored else "no annotated video could be read"
        raise DataError(why)
    return {**timeline_metrics(stretches), "videos": videos, "unscored": round(unscored, 3)}


def check_labeled_classes(labeled: Bouts, classes: Classes, *, report: Report) -> None:
    """Refuse annotations that share no class with the model; report the classes that the model lacks."""
    check_one_head(classes.heads, option="--truth")
    names = classes.of_head(classes.heads[0])
    counts = _bouts_by_class(labeled)
    unknown = [label for label in counts if label not in names]
    if unknown and len(unknown) == len(counts):
        what = f"'{unknown[0]}'{did_you_mean(unknown[0], names)}"
        raise DataError(f"the annotations have no class of the model: {what}")
    for label in unknown:
        what = f"'{label}' ({counted(counts[label], 'labeled bout')}){did_you_mean(label, names)}"
        report(notice(f"the model has no class {what}"))


def refuse_unknown_classes(labeled: Bouts, names: Sequence[str], *, source: Path) -> None:
    """Raise DataError for a class of checked windows that the model lacks, such as a misspelled one."""
    for label, count in _bouts_by_class(labeled).items():
        if label not in names:
            similar = did_you_mean(label, [*names, CHECKED])
            raise DataError(f"{source}: the model has no class '{label}' ({counted(count, 'bout')}){similar}")


def _bouts_by_class(labeled: Bouts) -> Counter[str]:
    """The number of annotated bouts of each class, without background."""
    labels = (bout.label for bouts in labeled.values() for bout in bouts)
    return Counter(label for label in labels if label not in (BACKGROUND, *MARKS))


def _stretches(
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
    for begin, end in scored:
        # Programs round times to milliseconds.
        first, last = frame_range(times, begin - 0.0005, end - 0.0005)
        if first < last:
            inside = _clip_bouts(predicted_bouts, begin, end)
            stretches.append(
                Stretch(
                    times=times[first:last],
                    end=end,
                    labeled=_clip_bouts(true_bouts, begin, end),
                    predicted=[bout.as_bout() for bout in inside],
                    scores=[bout.probability for bout in inside],
                    group=group,
                )
            )
    return stretches


def _clip_bouts(bouts: Sequence[AnyBout], begin: float, end: float) -> list[AnyBout]:
    """The parts of bouts in a stretch of time."""
    return [
        replace(bout, start=max(bout.start, begin), end=min(bout.end, end))
        for bout in bouts
        if bout.start < end and (bout.end > begin or bout.start >= begin)
    ]
