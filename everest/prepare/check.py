"""Check a data set before a run: every video decoded completely, labels, lengths, copies.

The result of each file is kept in a journal, so a check that was killed is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from everest.config.heads import Task
from everest.inference.journal import open_journal
from everest.lists.checked import CheckedList, CheckedSample
from everest.lists.labels import LabelRules
from everest.lists.sample import Sample
from everest.prepare.examine import Inspection, examine, min_median_max, num_frames
from everest.prepare.label_checks import (
    check_labels,
    class_counts,
    number_counts,
    rare_classes,
    training_source,
)
from everest.system.events import Report, notice
from everest.video.file_processes import Failure, map_apart
from everest.video.reader import NO_SECONDS

JOURNAL: Final = "checked_videos.jsonl"
_INSPECTION: Final = TypeAdapter(Inspection)

Kind = Literal["listed", "file", "frames"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One of several rows with the same content."""

    source: CheckedList
    row: CheckedSample

    @property
    def scope(self) -> Hashable:
        """Rows are compared if this is equal: the segment and, for pre-training, the list."""
        sample = self.row.sample
        own_list = self.source.path if self.source.pretrains else None
        return sample.start, sample.end, sample.start_frame, sample.end_frame, own_list


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Rows with the same content.

    listed: the same file and segment; file: files with the same bytes; frames: the same number of frames and
    the same first frames (everest.prepare.examine.COMPARED), as in a copy in another container.
    """

    kind: Kind
    copies: Sequence[Copy]

    @property
    def leaks(self) -> bool:
        """Whether several lists have a copy, so that a model is evaluated on training videos."""
        return len({copy.source.path for copy in self.copies}) > 1

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        labels = {copy.row.sample.labels for copy in self.copies if copy.row.sample.labels}
        return {
            "kind": self.kind,
            "videos": list(dict.fromkeys(copy.row.sample.video_id for copy in self.copies)),
            "lists": list(dict.fromkeys(str(copy.source.path) for copy in self.copies)),
            "rows": [copy.row.where for copy in self.copies],
            "leak": self.leaks,
            "labels_differ": len(labels) > 1,
        }


def find_duplicates(sources: Sequence[CheckedList], inspections: Mapping[str, Inspection]) -> list[Duplicate]:
    """All duplicates, the surest kind first; rows joined by one kind count as one row for the next.

    A list for pre-training is compared with itself only.
    """
    copies = [Copy(source, row) for source in sources for row in source.rows]
    duplicates: list[Duplicate] = []
    kinds: tuple[tuple[Kind, Callable[[Sample, Inspection], Hashable]], ...] = (
        ("listed", lambda sample, inspection: sample.path),
        ("file", lambda sample, inspection: inspection.content),
        (
            "frames",
            lambda sample, inspection: inspection.beginning and (inspection.beginning, inspection.frames),
        ),
    )
    for kind, key_of in kinds:
        groups: dict[Hashable, list[Copy]] = {}
        for copy in copies:
            sample = copy.row.sample
            key = key_of(sample, inspections[sample.path])
            if key is not None:
                groups.setdefault((key, copy.scope), []).append(copy)
        duplicates += [Duplicate(kind=kind, copies=group) for group in groups.values() if len(group) > 1]
        repeated = {id(copy) for group in groups.values() for copy in group[1:]}
        copies = [copy for copy in copies if id(copy) not in repeated]
    return duplicates


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of a check."""

    sources: Sequence[CheckedList]
    inspections: Mapping[str, Inspection]  # by path, in the order of the lists
    bad: Mapping[str, str]  # video (or segment) to what is wrong with it
    labels: Sequence[str]  # what is wrong with the labels
    unused_classes: Sequence[str]
    task: Task
    classes: Sequence[Mapping[str, Any]]  # videos of each, see `class_counts`
    rare_classes: Sequence[Mapping[str, Any]]  # in the training list
    numbers: Mapping[str, Mapping[str, float]]  # see `number_counts`
    short: Mapping[str, int]  # frames of each video that is shorter than a clip
    duplicates: Sequence[Duplicate]

    @property
    def leaks(self) -> list[Duplicate]:
        return [duplicate for duplicate in self.duplicates if duplicate.leaks]

    def to_dict(self) -> dict[str, Any]:
        """For scripts. The same for an interrupted and an uninterrupted check."""
        good = [inspection for inspection in self.inspections.values() if inspection.reason is None]
        lengths = [inspection.length for inspection in good if inspection.length is not None]
        return {
            "checked": len(self.inspections),
            "ok": len(good),
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad.items()],
            "frames": min_median_max([inspection.frames for inspection in good]),
            "seconds": min_median_max(lengths),
            "duplicates": [duplicate.to_dict() for duplicate in self.duplicates],
            "leaks": len(self.leaks),
            "labels": list(self.labels),
            "unused_classes": list(self.unused_classes),
            "task": self.task,
            "classes": list(self.classes),
            "rare_classes": list(self.rare_classes),
            "numbers": dict(self.numbers),
            "short": [{"path": path, "frames": frames} for path, frames in self.short.items()],
        }


def check_sources(
    sources: Sequence[CheckedList],
    rules: LabelRules,
    *,
    span: int | None,
    fps: float | None = None,
    journal: Path,
    workers: int,
    limit: float,
    report: Report,
    restart: bool = False,
    training: Path | None = None,
) -> Check:
    """Decode all videos and compare the results with the lists.

    Args:
        span: frames from the first to the last of a clip; None accepts any length.
        fps: frames per second that `span` counts; None: of each file.
        journal: keeps the results; files that it has are not decoded again.
        restart: forget the results in the journal.
        workers: processes that decode.
        limit: seconds for a video.
        training: the path of the source that models are trained on; None: as the names of the lists show.
    """
    paths = list(dict.fromkeys(row.sample.path for source in sources for row in source.rows))
    inspections = _inspect(paths, journal, workers=workers, limit=limit, report=report, restart=restart)
    bad = {path: result.reason for path, result in inspections.items() if result.reason is not None}
    short = {}
    for sample in (row.sample for source in sources for row in source.rows):
        result = inspections[sample.path]
        if result.reason is None:
            frames = num_frames(sample, result.frames, result.length)
            if result.length is None and (sample.start, sample.end) != (None, None):
                bad[sample.video_id] = NO_SECONDS
            elif frames <= 0:
                has = f"{result.frames} frames" + (f" in {result.length:.2f} s" if result.length else "")
                bad[sample.video_id] = f"no frame is in the segment; the video has {has}"
            elif span and (counted := num_frames(sample, result.frames, result.length, fps)) < span:
                short[sample.video_id] = counted
    trained = next((source for source in sources if source.path == training), None)
    trained = trained or training_source(sources)
    label_problems, unused_classes = check_labels(sources, rules, training=trained)
    return Check(
        sources=sources,
        inspections=inspections,
        bad=bad,
        labels=label_problems,
        unused_classes=unused_classes,
        task=rules.task,
        classes=class_counts(sources, rules),
        rare_classes=rare_classes(trained, rules),
        numbers=number_counts(sources),
        short=short,
        duplicates=find_duplicates(sources, inspections),
    )


def _inspect(
    paths: Sequence[str], journal_file: Path, *, workers: int, limit: float, report: Report, restart: bool
) -> dict[str, Inspection]:
    """The inspection of each file, from the journal or by decoding it, in the order of `paths`."""
    fix = "remove it, or use --output DIR"
    with open_journal(journal_file, entry=_INSPECTION, fix=fix, restart=restart) as journal:
        known = {inspection.path: inspection for inspection in journal.entries}
        results = {path: known[path] for path in paths if path in known and known[path].is_current()}
        if results:
            report(notice(f"{len(results)} of {len(paths)} videos were checked before ({journal_file})"))
        remaining = [path for path in paths if path not in results]
        for path, result in map_apart(examine, remaining, workers=workers, limit=limit):
            if isinstance(result, Failure):
                result = Inspection(path=path, reason=result.reason, lasting=False)
            if result.reason is not None:
                report(notice(f"{path}: {result.reason}"))
            results[path] = result
            journal.add([result])
            report({"event": "video", "done": len(results), "videos": len(paths)})
    return {path: results[path] for path in paths}
