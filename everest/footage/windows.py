"""Lists of windows of long videos: `prepare windows`.

A window is a sample: a video with a start and an end in seconds. A killed call resumes from a journal next to
the list, which has the measures of each finished video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everest.annotations.matching import late_notices
from everest.annotations.scored import are_scored
from everest.errors import DataError, RecipeError
from everest.footage.labeled_list import Labeling
from everest.footage.measures import (
    TOLERANCE,
    Problems,
    WindowSettings,
    candidate_starts,
    journal_of,
    measure_all,
    was_killed_after_list,
)
from everest.footage.selection import choose_windows
from everest.lists.sample import Sample
from everest.lists.writing import refuse_unlistable, write_list
from everest.system.events import Report, notice
from everest.system.files import check_new_file
from everest.system.storage import parse_location
from everest.system.text import counted


@dataclass(slots=True)
class WindowList:
    """The windows that were listed, and the videos with a problem."""

    file: Path
    settings: WindowSettings
    windows: int = 0
    hours: float = 0.0  # of all windows, overlaps counted twice
    videos: int = 0  # that have a window
    problems: Problems = field(default_factory=Problems)
    labeled: dict[str, Any] | None = None  # `Labeling.write`, and `unscored`: the windows left out

    def to_dict(self) -> dict[str, object]:
        """The document of `--json`."""
        problems = {
            name: [{"path": path, "reason": reason} for path, reason in getattr(self.problems, name)]
            for name in ("failed", "damaged", "unranked")
        }
        return {
            "list": str(self.file),
            "by": self.settings.by,
            "windows": self.windows,
            "hours": self.hours,
            "videos": self.videos,
            **(self.labeled or {}),
            **problems,
        }


def windows_of(
    sample: Sample, starts: NDArray[np.float64], end: float, settings: WindowSettings
) -> list[Sample]:
    """Returns the windows of a video that begin at `starts`, none after `end`; its group is kept."""
    ends = np.minimum(starts + settings.seconds, end).round(6)
    span = {"start_frame": None, "end_frame": None}
    return [
        replace(sample, start=begin, end=stop, **span)
        for begin, stop in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def write_windows(
    samples: Sequence[Sample],
    out: Path,
    settings: WindowSettings,
    *,
    labeling: Labeling | None = None,
    overwrite: bool,
    report: Report,
) -> WindowList:
    """Choose windows of videos or segments, and write their list.

    Args:
        labeling: labels of the windows; videos without a bout are left out, because no one may have looked
            at them.
    """
    overwrite = overwrite or was_killed_after_list(out)
    check_new_file(out, option="--output", overwrite=overwrite)
    samples = [replace(sample, path=str(parse_location(sample.path).absolute())) for sample in samples]
    refuse_unlistable(samples)
    if any(sample.member is not None for sample in samples):
        raise RecipeError("videos in shards have no windows; name the list or folder they were made from")
    result = WindowList(out, settings)
    bouts = {} if labeling is None else labeling.bouts((sample.path for sample in samples), report)
    if labeling is not None:
        samples = [sample for sample in samples if sample.path in bouts]
    measured = measure_all(samples, out, settings, result.problems, report)
    whole = [(sample.path, of) for sample, of in measured if sample.video_id == sample.path]
    ends = {path: of.end for path, of in whole if of.damage is None}
    for text in late_notices(bouts, ends):
        report(notice(text))
    if not measured:
        journal_of(out).unlink(missing_ok=True)
        path, reason = result.problems.failed[0]
        raise DataError(f"none of {counted(len(samples), 'video')} can be read, first {path}: {reason}")
    starts = [candidate_starts(of.start, of.end, settings, of.missing) for _, of in measured]
    scores = None
    if settings.by == "activity":
        scores = [None if of.scores is None else np.array(of.scores) for _, of in measured]
    candidates = sum(map(len, starts))
    scored = [
        are_scored(begins, np.minimum(begins + settings.seconds, of.end), bouts.get(sample.path, ()))
        for (sample, of), begins in zip(measured, starts, strict=True)
    ]
    starts = [begins[inside] for begins, inside in zip(starts, scored, strict=True)]
    if scores is not None:
        scores = [None if each is None else each[inside] for each, inside in zip(scores, scored, strict=True)]
    total = sum(map(len, starts))
    if not total:
        raise DataError(f"all {counted(candidates, 'window')} touch time that no one has labeled (unscored)")
    if total < candidates:
        report(
            notice(f"left out, touch unscored time: {candidates - total} of {counted(candidates, 'window')}")
        )
    chosen = choose_windows(
        list(map(len, starts)),
        scores,
        count=total if settings.count is None else settings.count,
        apart=max(int(np.ceil(settings.seconds / settings.step - TOLERANCE)), 1),
        cap=settings.cap,
        seed=settings.seed,
    )
    windows: list[Sample] = []
    for (sample, of), begins, numbers in zip(measured, starts, chosen, strict=True):
        windows += windows_of(sample, begins[numbers], of.end, settings)
    result.windows = len(windows)
    result.videos = len({window.path for window in windows})
    result.hours = sum((window.end or 0) - (window.start or 0) for window in windows) / 3600
    if settings.count is not None and len(windows) < settings.count:
        limit = "" if total < settings.count else "; --per-video is the limit of each video"
        report(notice(f"{counted(len(windows), 'window')} of {settings.count} requested{limit}"))
    if labeling is None:
        write_list(out, windows, root=out.parent.absolute())
    else:
        labeled = labeling.write(out, windows, bouts, overwrite=overwrite)
        result.labeled = {**labeled, "unscored": candidates - total}
    journal_of(out).unlink(missing_ok=True)
    return result
