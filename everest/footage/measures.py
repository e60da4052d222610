"""The measures of long videos from which their windows are listed, kept in a journal next to the list.

N candidates: all windows of a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from everest.annotations.scored import are_outside
from everest.errors import RecipeError
from everest.footage.activity import why_none, window_activity
from everest.inference.journal import open_journal
from everest.inference.windows import check_seconds
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.video.packet_sizes import PacketSizes, packet_sizes
from everest.video.reader import damage_text
from everest.video.source import Video, video_version
from everest.video.stream import VideoError

TOLERANCE: Final = 1e-6  # seconds; sums of steps are rounded
JOURNAL: Final = ".measured.jsonl"  # added to the name of the list, until that is written

Way = Literal["uniform", "activity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """Which windows are listed."""

    seconds: float
    step: float  # seconds from a candidate to the next
    by: Way = "uniform"
    count: int | None = None  # windows in all; None: all candidates
    cap: int | None = None  # windows of one video
    seed: int = 0

    def __post_init__(self) -> None:
        check_seconds(seconds=self.seconds, step=self.step)
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
    damage: str | None  # what is missing, as a sentence; None: nothing
    missing: list[tuple[float, float]]  # seconds without intact frames, up to `end`


@dataclass(slots=True)
class Problems:
    """The videos with a problem, each with its reason."""

    failed: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    unranked: list[tuple[str, str]] = field(default_factory=list)


def candidate_starts(
    start: float, end: float, settings: WindowSettings, missing: Sequence[tuple[float, float]] = ()
) -> NDArray[np.float64]:
    """Return the starts (N,) of all intact windows from `start` to `end`; a shorter part gives one window.

    Args:
        missing: seconds without intact frames.
    """
    number = int((end - start - settings.seconds + TOLERANCE) // settings.step) + 1
    starts = start + settings.step * np.arange(max(number, 1), dtype=np.float64)
    starts = starts.round(6)
    return starts[are_outside(starts, np.minimum(starts + settings.seconds, end), missing)]


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}{JOURNAL}")


def was_killed_after_list(out: Path) -> bool:
    """Whether a call has written its list, and was killed before it removed its journal."""
    journal = journal_of(out)
    return journal.is_file() and out.is_file() and out.stat().st_mtime_ns >= journal.stat().st_mtime_ns


def measure_all(
    samples: Sequence[Sample], out: Path, settings: WindowSettings, problems: Problems, report: Report
) -> list[tuple[Sample, Measures]]:
    """Measure each video, or take its measures from the journal; problems are added."""
    measured: list[tuple[Sample, Measures]] = []
    fix = "remove it"
    with open_journal(journal_of(out), entry=TypeAdapter(Measures), fix=fix) as journal:
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
                problems.failed.append((sample.path, reason))
                report(notice(f"{sample.path}: {reason}; no windows"))
                continue
            of = known[key]
            measured.append((sample, of))
            if of.damage is not None:
                problems.damaged.append((sample.path, of.damage))
                report(notice(f"{sample.path}: {of.damage}; no windows there"))
            if of.unranked is not None:
                problems.unranked.append((sample.path, of.unranked))
                report(notice(f"{sample.path}: {of.unranked}; its windows are spread evenly"))
            report({"event": "video", "done": done, "videos": len(samples)})
    return measured


def _measure(sample: Sample, version: tuple[int, str], key: str, settings: WindowSettings) -> Measures:
    """Read the packets of a video."""
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
    is_open = sample.end is None and sample.end_frame is None
    damage = damage_text(packets.missing, within=(start or -inf, inf if is_open else end))
    missing = [(begin, min(stop, end)) for begin, stop in packets.missing if begin < end]
    starts = candidate_starts(start, end, settings, missing)
    if not starts.size:
        raise VideoError(sample.video, f"{damage}, which leaves no window of {settings.seconds:g} s")
    unranked = why_none(packets) if settings.by == "activity" else None
    scores = None
    if settings.by == "activity" and unranked is None:
        scores = np.round(window_activity(packets, starts, settings.seconds), 4).tolist()
    return Measures(
        key=key, start=start, end=end, scores=scores, unranked=unranked, damage=damage, missing=missing
    )


@lru_cache(maxsize=1)  # a list may have many segments of one video, one after the other
def _packets(video: Video, version: tuple[int, str]) -> PacketSizes:
    return packet_sizes(video)
