"""Lists of windows of long videos: `prepare windows`.

A window is a sample: a video with a start and an end in seconds. A killed call resumes from a journal next to
the list, which has the measures of each finished video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from everest.errors import DataError, RecipeError
from everest.footage.activity import why_none, window_activity
from everest.footage.labeled_list import Labeling
from everest.footage.selection import choose_windows
from everest.inference.journal import open_journal
from everest.lists.sample import Sample
from everest.lists.writing import refuse_unlistable, write_list
from everest.system.events import Report, notice
from everest.system.files import check_new_file
from everest.system.storage import parse_location
from everest.system.text import counted
from everest.video.packet_sizes import PacketSizes, packet_sizes
from everest.video.source import Video, video_version
from everest.video.stream import VideoError

TOLERANCE: Final = 1e-6  # seconds; sums of steps are rounded
JOURNAL: Final = ".measured.jsonl"  # added to the name of the list, until that is written

Way = Literal["uniform", "activity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """Which windows are listed.

    Raises:
        RecipeError: the settings do not fit together.
    """

    seconds: float
    step: float  # seconds from a candidate to the next
    by: Way = "uniform"
    count: int | None = None  # windows in all; None: all candidates
    cap: int | None = None  # windows of one video
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value in (("--seconds", self.seconds), ("--step", self.step)):
            if not 0 < value < math.inf:
                raise RecipeError(f"{option} {value:g}: must be a positive number of seconds")
        if self.by == "activity" and self.count is None:
            raise RecipeError("--by activity chooses among windows; state how many by --hours H or --count N")
        if self.count == 0:
            raise RecipeError("--hours is less than one window; use more hours or fewer --seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The measures of one video, or of a segment of one."""

    key: str  # of the video's version and the settings, for the journal
    start: float  # seconds: of the first window
    end: float  # seconds: no window ends later
    scores: list[float] | None  # of each candidate; None if they are not wanted or not known
    unranked: str | None  # why there are no scores
    damage: str | None  # why the video was not read to its end


@dataclass(slots=True)
class WindowList:
    """The windows that were listed, and the videos with a problem."""

    file: Path
    settings: WindowSettings
    windows: int = 0
    hours: float = 0.0  # of all windows, overlaps counted twice
    videos: int = 0  # that have a window
    failed: list[tuple[str, str]] = field(default_factory=list)  # (video, reason)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    unranked: list[tuple[str, str]] = field(default_factory=list)
    labeled: dict[str, Any] | None = None  # `Labeling.write`

    def to_dict(self) -> dict[str, object]:
        """The document of `--json`."""
        problems = {
            name: [{"path": path, "reason": reason} for path, reason in getattr(self, name)]
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


def candidate_starts(start: float, end: float, settings: WindowSettings) -> NDArray[np.float64]:
    """Returns (N,) the starts of all windows from `start` to `end`; one, if they are less than a window."""
    number = int((end - start - settings.seconds + TOLERANCE) // settings.step) + 1
    starts = start + settings.step * np.arange(max(number, 1), dtype=np.float64)
    return starts.round(6)


def windows_of(
    sample: Sample, starts: NDArray[np.float64], end: float, settings: WindowSettings
) -> list[Sample]:
    """Returns the windows of a video that begin at `starts`, none after `end`; labels and group are kept."""
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
    Raises:
        DataError: no video can be read, or no list can hold one of the paths.
        RecipeError: the list exists, or another process writes it now.
        EnvironmentProblem: it cannot be written.
    """
    overwrite = overwrite or _journal_of(out).exists()  # the call may have been killed after the list
    check_new_file(out, option="--output", overwrite=overwrite)
    samples = [replace(sample, path=str(parse_location(sample.path).absolute())) for sample in samples]
    refuse_unlistable(samples)
    if any(sample.member is not None for sample in samples):
        raise RecipeError("videos in shards have no windows; name the list or folder they were made from")
    result = WindowList(out, settings)
    bouts = {} if labeling is None else labeling.bouts((sample.path for sample in samples), report)
    if labeling is not None:
        samples = [sample for sample in samples if sample.path in bouts]
    measured = _measure_all(samples, out, settings, result, report)
    if not measured:
        _journal_of(out).unlink(missing_ok=True)
        path, reason = result.failed[0]
        raise DataError(f"none of {counted(len(samples), 'video')} can be read, first {path}: {reason}")
    starts = [candidate_starts(of.start, of.end, settings) for _, of in measured]
    scores = None
    if settings.by == "activity":
        scores = [None if of.scores is None else np.array(of.scores) for _, of in measured]
    total = sum(map(len, starts))
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
        limit = "" if total < settings.count else ", because of the most windows that a video may have"
        report(notice(f"{counted(len(windows), 'window')} of {settings.count} requested{limit}"))
    if labeling is None:
        write_list(out, windows, root=out.parent.absolute())
    else:
        result.labeled = labeling.write(out, windows, bouts, overwrite=overwrite)
    _journal_of(out).unlink(missing_ok=True)
    return result


def _journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}{JOURNAL}")


def _measure_all(
    samples: Sequence[Sample], out: Path, settings: WindowSettings, result: WindowList, report: Report
) -> list[tuple[Sample, Measures]]:
    """Measure each video, or take its measures from the journal; problems are added to `result`."""
    measured: list[tuple[Sample, Measures]] = []
    fix = "remove it"
    with open_journal(_journal_of(out), entry=TypeAdapter(Measures), fix=fix) as journal:
        known = {of.key: of for of in journal.entries}
        for done, sample in enumerate(samples, start=1):
            try:
                size, changing = video_version(sample.video)
                key = f"{sample.video_id}|{size}|{changing}|{settings.seconds}|{settings.step}|{settings.by}"
                if key not in known:
                    known[key] = _measure(sample, (size, changing), key, settings)
                    journal.add([known[key]])
            except (VideoError, OSError) as error:
                reason = error.reason if isinstance(error, VideoError) else error.strerror or str(error)
                result.failed.append((sample.path, reason))
                report(notice(f"{sample.path}: {reason}; no windows"))
                continue
            of = known[key]
            measured.append((sample, of))
            if of.damage is not None:
                result.damaged.append((sample.path, of.damage))
                report(notice(f"{sample.path}: {of.damage}; no windows after {of.end:.0f} s"))
            if of.unranked is not None:
                result.unranked.append((sample.path, of.unranked))
                report(notice(f"{sample.path}: {of.unranked}; its windows are spread evenly"))
            report({"event": "video", "done": done, "videos": len(samples)})
    return measured


def _measure(sample: Sample, version: tuple[int, str], key: str, settings: WindowSettings) -> Measures:
    """Read the packets of a video.

    Raises:
        VideoError: it is unreadable, or has no frame in the segment.
    """
    if version[0] == 0:
        raise VideoError(sample.video, "empty file")
    packets = _packets(sample.video, version)
    start, end = sample.start or 0.0, packets.end if sample.end is None else min(sample.end, packets.end)
    times = np.append(packets.seconds, packets.end)
    if sample.start_frame is not None:
        start = float(times[min(sample.start_frame, len(times) - 1)])
    if sample.end_frame is not None:
        end = float(times[min(sample.end_frame, len(times) - 1)])
    if start >= end - TOLERANCE:
        raise VideoError(sample.video, f"no frame from {start:g} s on; it ends at {packets.end:g} s")
    unranked = why_none(packets) if settings.by == "activity" else None
    scores = None
    if settings.by == "activity" and unranked is None:
        starts = candidate_starts(start, end, settings)
        scores = np.round(window_activity(packets, starts, settings.seconds), 4).tolist()
    return Measures(key=key, start=start, end=end, scores=scores, unranked=unranked, damage=packets.damage)


@lru_cache(maxsize=1)  # a list may have many segments of one video, one after the other
def _packets(video: Video, version: tuple[int, str]) -> PacketSizes:
    return packet_sizes(video)
