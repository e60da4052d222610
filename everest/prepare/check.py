"""What the labels of all lists together tell: gaps, and names that may be one.

The same video twice: listed twice, copied under another name, or packed anew.

Check a data set before a run does: every video decoded whole, labels, lengths, copies.

What was found of a file is kept in a journal (everest.prepare.examine), so a check that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from everest.data.samples import Sample
from everest.prepare.class_folders import same_but_for_case
from everest.prepare.examine import Inspection, Journal, examine
from everest.prepare.processes import Failure, map_apart
from everest.prepare.sources import LabelRules, ListedSample, Source
from everest.prepare.stats import spread
from everest.system.events import Report, notice

SHOWN: Final = 10  # numbers that a line names


def used_labels(sources: Sequence[Source]) -> list[set[int]]:
    """The labels of every head that any sample has."""
    labels = [row.sample.labels for source in sources if source.labelled for row in source.rows]
    heads = max(map(len, labels), default=0)
    return [{label[head] for label in labels if len(label) > head} for head in range(heads)]


def label_problems(sources: Sequence[Source], rules: LabelRules) -> list[str]:
    """Rows that are wrong, names that differ in case only, and numbers left out below the highest."""
    rows = [f"{row.place}: {row.problem}" for source in sources for row in source.rows if row.problem]
    lines = [f"{place}: {problem}" for source in sources for place, problem in source.unreadable.items()]
    pairs = [
        f"the classes '{one}' and '{other}' differ in case only; are they one?"
        for one, other in same_but_for_case(rules.names)
    ]
    gaps = []
    if not _known_counts(rules):
        for used in used_labels(sources):
            unused = sorted(set(range(max(used, default=0))) - used)
            if unused:
                gaps.append(f"no sample has label {_first(unused)}, and labels go up to {max(used)}")
    return [*lines, *rows, *pairs, *gaps]


def unused_classes(sources: Sequence[Source], rules: LabelRules) -> list[str]:
    """Classes that are known and have no sample, which long-tailed data sets have."""
    heads = list(rules.heads or [""])
    unused = []
    for head, used, count in zip(heads, used_labels(sources), _known_counts(rules), strict=False):
        names = [
            rules.names[label] if rules.names else str(label) for label in range(count) if label not in used
        ]
        unused += [f"{head} {name}" for name in names] if head else names
    return unused


def _known_counts(rules: LabelRules) -> list[int]:
    """The number of classes of each head; nothing where it is not known."""
    if rules.heads:
        return list(rules.heads.values())
    count = len(rules.names) or rules.num_classes
    return [count] if count else []


def _first(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (", …" if len(numbers) > SHOWN else "")


Kind = Literal["listed", "file", "frames"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One of several rows that show the same."""

    source: Source
    row: ListedSample


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Rows that show the same.

    listed: the same file and part; file: files of the same bytes; frames: as many frames, and the first of
    them (everest.prepare.examine.COMPARED) the same, as in a file that was packed anew.
    """

    kind: Kind
    copies: Sequence[Copy]

    @property
    def leaks(self) -> bool:
        """Whether it stands in several lists: what is tested was trained on."""
        return len({copy.source.path for copy in self.copies}) > 1

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        labels = {copy.row.sample.labels for copy in self.copies if copy.row.sample.labels}
        return {
            "kind": self.kind,
            "videos": list(dict.fromkeys(copy.row.sample.video_id for copy in self.copies)),
            "lists": list(dict.fromkeys(str(copy.source.path) for copy in self.copies)),
            "leak": self.leaks,
            "labels_differ": len(labels) > 1,
        }


def find_duplicates(sources: Sequence[Source], findings: Mapping[str, Inspection]) -> list[Duplicate]:
    """All of them, the surest kind first; rows that one kind joins are one row to the next.

    A list for pre-training is compared with itself only.
    """
    copies = [Copy(source, row) for source in sources for row in source.rows]
    found: list[Duplicate] = []
    kinds: tuple[tuple[Kind, Callable[[Sample, Inspection], Hashable]], ...] = (
        ("listed", lambda sample, finding: sample.path),
        ("file", lambda sample, finding: finding.content),
        ("frames", lambda sample, finding: finding.beginning and (finding.beginning, finding.frames)),
    )
    for kind, same in kinds:
        alike: dict[Hashable, list[Copy]] = {}
        for copy in copies:
            sample = copy.row.sample
            key = same(sample, findings[sample.path])
            if key is not None:
                apart = copy.source.path if copy.source.pretrains else None
                alike.setdefault((key, _part(sample), apart), []).append(copy)
        found += [Duplicate(kind=kind, copies=group) for group in alike.values() if len(group) > 1]
        repeated = {id(copy) for group in alike.values() for copy in group[1:]}
        copies = [copy for copy in copies if id(copy) not in repeated]
    return found


def _part(sample: Sample) -> tuple[float | int | None, ...]:
    return sample.start, sample.end, sample.start_frame, sample.end_frame


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is wrong with a data set, and what is worth knowing."""

    sources: Sequence[Source]
    findings: Mapping[str, Inspection]  # by path, in the order of the lists
    bad: Mapping[str, str]  # video (or part of one) to what is wrong with it
    labels: Sequence[str]  # what is wrong with the labels
    unused_classes: Sequence[str]
    short: Mapping[str, int]  # video to its frames, where they are fewer than a clip spans
    duplicates: Sequence[Duplicate]

    @property
    def leaks(self) -> list[Duplicate]:
        return [duplicate for duplicate in self.duplicates if duplicate.leaks]

    @property
    def passed(self) -> bool:
        """Whether a run can use the lists as they are. Copies within one list are told, no more."""
        return not (self.bad or self.labels or self.leaks)

    def to_dict(self) -> dict[str, Any]:
        """For scripts. The same for a check that was interrupted and one that was not."""
        good = [found for found in self.findings.values() if found.reason is None]
        return {
            "checked": len(self.findings),
            "ok": len(good),
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad.items()],
            "frames": spread([found.frames for found in good]),
            "seconds": spread([found.seconds for found in good if found.seconds is not None]),
            "duplicates": [duplicate.to_dict() for duplicate in self.duplicates],
            "leaks": len(self.leaks),
            "labels": list(self.labels),
            "unused_classes": list(self.unused_classes),
            "short": [{"path": path, "frames": frames} for path, frames in self.short.items()],
        }


def check_sources(
    sources: Sequence[Source],
    rules: LabelRules,
    *,
    span: int | None,
    journal: Path,
    workers: int,
    limit: float,
    report: Report,
) -> Check:
    """Decode all videos and compare what was found with what the lists say.

    Args:
        span: frames from the first to the last of a clip; None asks nothing of a video's length.
        journal: what was found already, and where to note the rest.
        workers: processes that decode.
        limit: seconds for a video.
    Raises:
        RecipeError, EnvironmentProblem: the journal is none, or cannot be written.
    """
    paths = list(dict.fromkeys(row.sample.path for source in sources for row in source.rows))
    findings = _findings(paths, journal, workers=workers, limit=limit, report=report)
    bad = {path: found.reason for path, found in findings.items() if found.reason is not None}
    samples = [row.sample for source in sources for row in source.rows if row.sample.path not in bad]
    lengths = {sample.video_id: length(sample, findings[sample.path]) for sample in samples}
    for sample in samples:
        if lengths[sample.video_id] <= 0:
            found = findings[sample.path]
            has = f"{found.frames} frames" + (f" in {found.seconds:.2f} s" if found.seconds else "")
            bad[sample.video_id] = f"the segment lies outside the video, which has {has}"
    return Check(
        sources=sources,
        findings=findings,
        bad=bad,
        labels=label_problems(sources, rules),
        unused_classes=unused_classes(sources, rules),
        short={video: frames for video, frames in lengths.items() if span and 0 < frames < span},
        duplicates=find_duplicates(sources, findings),
    )


def _findings(
    paths: Sequence[str], journal: Path, *, workers: int, limit: float, report: Report
) -> dict[str, Inspection]:
    """What a look at each file told, in the order of `paths`."""
    with Journal(journal) as kept:
        found = kept.known(paths)
        if found:
            report(notice(f"{len(found)} of {len(paths)} videos were checked before ({journal})"))
        remaining = [path for path in paths if path not in found]
        for path, result in map_apart(examine, remaining, workers=workers, limit=limit):
            if isinstance(result, Failure):
                result = Inspection(path=path, reason=result.reason, lasting=False)
            if result.reason is not None:
                report(notice(f"{path}: {result.reason}"))
            found[path] = result
            kept.add(result)
            report({"event": "video", "done": len(found), "videos": len(paths)})
    return {path: found[path] for path in paths}


def length(sample: Sample, found: Inspection) -> int:
    """Frames of a sample: of the whole file, or of its part of it, none where that lies outside."""
    rate = found.frames / found.seconds if found.seconds else 0.0
    first = sample.start_frame or round((sample.start or 0) * rate)
    end = found.frames if sample.end_frame is None else min(sample.end_frame, found.frames)
    if sample.end is not None:
        end = min(round(sample.end * rate), found.frames)
    return end - first
