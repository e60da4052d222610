"""Check a data set before a run does: every video decoded whole, labels, lengths, copies.

What was found of a file is kept in a journal (everest.prepare.journal), so a check that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everest.data.samples import Sample
from everest.prepare.duplicates import Duplicate, find_duplicates
from everest.prepare.examine import Finding, examine
from everest.prepare.journal import Journal
from everest.prepare.label_checks import label_problems, unused_classes
from everest.prepare.processes import Failure, map_apart
from everest.prepare.sources import LabelRules, Source
from everest.prepare.spread import spread
from everest.system.events import Report, notice


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is wrong with a data set, and what is worth knowing."""

    sources: Sequence[Source]
    findings: Mapping[str, Finding]  # by path, in the order of the lists
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

    def told(self) -> dict[str, Any]:
        """For scripts. The same for a check that was interrupted and one that was not."""
        good = [found for found in self.findings.values() if found.reason is None]
        return {
            "checked": len(self.findings),
            "ok": len(good),
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad.items()],
            "frames": spread([found.frames for found in good]),
            "seconds": spread([found.seconds for found in good if found.seconds is not None]),
            "duplicates": [duplicate.told() for duplicate in self.duplicates],
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
) -> dict[str, Finding]:
    """What a look at each file told, in the order of `paths`."""
    with Journal(journal) as kept:
        found = kept.known(paths)
        if found:
            report(notice(f"{len(found)} of {len(paths)} videos were checked before ({journal})"))
        remaining = [path for path in paths if path not in found]
        for path, result in map_apart(examine, remaining, workers=workers, limit=limit):
            if isinstance(result, Failure):
                result = Finding(path=path, reason=result.reason, lasting=False)
            if result.reason is not None:
                report(notice(f"{path}: {result.reason}"))
            found[path] = result
            kept.add(result)
            report({"event": "video", "done": len(found), "videos": len(paths)})
    return {path: found[path] for path in paths}


def length(sample: Sample, found: Finding) -> int:
    """Frames of a sample: of the whole file, or of its part of it, none where that lies outside."""
    rate = found.frames / found.seconds if found.seconds else 0.0
    first = sample.start_frame or round((sample.start or 0) * rate)
    end = found.frames if sample.end_frame is None else min(sample.end_frame, found.frames)
    if sample.end is not None:
        end = min(round(sample.end * rate), found.frames)
    return end - first
