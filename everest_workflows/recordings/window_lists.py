"""Lists of windows of long videos (`prepare windows`), with their classes if there are bouts.

A window is a sample: a video with a start and an end in seconds. If only some windows are listed, they are
spread evenly. Of most intact files only the first frame is decoded.

N windows of a recording, in the order of time, a step apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import Task
from everest.data.footage import FrameTimes
from everest.errors import DataError, RecipeError
from everest.inference.windows import check_seconds
from everest.lists.sample import Sample
from everest.lists.writing import refuse_unlistable, write_list
from everest.system.events import Emit, notice
from everest.system.files import check_new_file
from everest.system.storage import parse_location
from everest.system.text import plural
from everest.system.types import Span
from everest.video.images import NO_SECONDS, image_folder
from everest.video.metadata import inspect_video
from everest.video.missing import damage_text
from everest.video.stream import VideoError
from everest.video.times import TIME_TOLERANCE
from everest_workflows.annotations.bout import Bout, Bouts, unscored_spans
from everest_workflows.annotations.matching import late_bout_notices
from everest_workflows.recordings.window_labels import write_labeled

PROBLEM_EFFECTS: Final = {"failed": "no windows", "damaged": "no windows there"}  # by kind of problem


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """Which windows are listed."""

    seconds: float
    step: float  # seconds from the start of a window to the next
    count: int | None = None  # windows to list; None: all
    seed: int = 0

    def __post_init__(self) -> None:
        check_seconds(seconds=self.seconds, step=self.step)
        if self.count == 0:
            raise RecipeError("--hours is less than one window; use more hours or fewer --seconds")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoWindows:
    """All windows of a video or segment, from which the listed windows are chosen."""

    sample: Sample
    windows: NDArray[np.float64]  # (N, 2) seconds
    num_unscored: int  # number of further windows, which touch time that no one has labeled
    end: float | None  # end of the video in seconds; None for a segment or a damaged video


def write_windows(
    samples: Sequence[Sample],
    out: Path,
    settings: WindowSettings,
    *,
    bouts: Bouts | None = None,
    task: Task | None = None,
    overwrite: bool,
    emit: Emit,
) -> dict[str, Any]:
    """Choose windows of videos or segments; write their list, return the JSON of `everest prepare windows`.

    Args:
        bouts: bouts by absolute paths (see `read_bouts`), which label the windows. Videos without a bout are
            left out: perhaps no one has looked at them. None: windows have no labels.
        task: see `label_samples`.
    Raises:
        DataError, RecipeError: no readable video or no scored window; an `out` that exists.
    """
    if task == "regression":
        raise RecipeError("--task regression: bouts have classes; use single-label or multi-label")
    check_new_file(out, overwrite=overwrite)
    samples = [replace(sample, path=str(parse_location(sample.path).absolute())) for sample in samples]
    refuse_unlistable(samples)
    if bouts is not None:
        samples = [sample for sample in samples if sample.path in bouts]
    videos, problems = _find_windows(samples, settings, bouts or {}, emit)
    chosen = choose_windows([len(video.windows) for video in videos], settings.count, seed=settings.seed)
    windows = [
        video.sample.with_seconds(start, end)
        for video, indices in zip(videos, chosen, strict=True)
        for start, end in video.windows[indices].tolist()
    ]
    if settings.count is not None and len(windows) < settings.count:
        emit(notice(f"{plural(len(windows), 'window')} of {settings.count} requested"))
    document: dict[str, Any] = {
        "windows": len(windows),
        # Time in overlaps of windows counts twice.
        "hours": sum((window.end or 0) - (window.start or 0) for window in windows) / 3600,
        "videos": len({window.path for window in windows}),
        **problems,
        "list": str(out),
    }
    if bouts is None:
        write_list(out, windows, root=out.parent.absolute())
        return document
    labels = write_labeled(out, windows, bouts, task=task, overwrite=overwrite)
    return document | labels | {"unscored": sum(video.num_unscored for video in videos)}


def _find_windows(
    samples: Sequence[Sample], settings: WindowSettings, bouts: Bouts, emit: Emit
) -> tuple[list[VideoWindows], dict[str, list[dict[str, str]]]]:
    """The windows of each readable video; and by kind of problem, paths and reasons of the other videos."""
    videos: list[VideoWindows] = []
    problems: dict[str, list[dict[str, str]]] = {name: [] for name in PROBLEM_EFFECTS}
    for num_done, sample in enumerate(samples, start=1):
        try:
            video, reasons = _windows_of(sample, settings, bouts.get(sample.path, ()))
            videos.append(video)
        except (VideoError, OSError) as error:
            reason = error.reason if isinstance(error, VideoError) else error.strerror or str(error)
            reasons = {"failed": reason}
        for problem, reason in reasons.items():
            problems[problem].append({"path": sample.path, "reason": reason})
            emit(notice(f"{sample.path}: {reason}; {PROBLEM_EFFECTS[problem]}"))
        emit({"event": "video", "done": num_done, "videos": len(samples)})
    if not videos:
        path, reason = problems["failed"][0].values()
        raise DataError(f"none of {plural(len(samples), 'video')} can be read, first {path}: {reason}")
    ends = {video.sample.path: video.end for video in videos if video.end is not None}
    for text in late_bout_notices(bouts, ends):
        emit(notice(text))
    total = sum(len(video.windows) for video in videos)
    unscored = sum(video.num_unscored for video in videos)
    if not total:
        raise DataError(f"all {plural(unscored, 'window')} touch time that no one has labeled (unscored)")
    if unscored:
        emit(notice(f"left out, touch unscored time: {unscored} of {plural(total + unscored, 'window')}"))
    return videos, problems


def _windows_of(
    sample: Sample, settings: WindowSettings, bouts: Sequence[Bout]
) -> tuple[VideoWindows, dict[str, str]]:
    """The windows of a sample, and its problems by kind; a video shorter than a window has one window."""
    if image_folder(sample.video):
        raise VideoError(sample.video, NO_SECONDS)
    video, missing = FrameTimes.of(sample.video), inspect_video(sample.video).missing
    times = np.append(video.seconds, video.end)
    start = sample.start or 0.0
    end = video.end if sample.end is None else min(sample.end, video.end)
    if sample.start_frame is not None:
        start = float(times[min(sample.start_frame, len(times) - 1)])
    if sample.end_frame is not None:
        end = float(times[min(sample.end_frame, len(times) - 1)])
    if start >= end - TIME_TOLERANCE:
        raise VideoError(sample.video, f"no frame from {start:g} s on; it ends at {video.end:g} s")
    count = max(int((end - start - settings.seconds + TIME_TOLERANCE) // settings.step) + 1, 1)
    starts = (start + settings.step * np.arange(count, dtype=np.float64)).round(6)
    gaps = [(gap_start, min(gap_end, end)) for gap_start, gap_end in missing if gap_start < end]
    windows = np.stack([starts, np.minimum(starts + settings.seconds, end).round(6)], axis=1)
    is_intact = _are_outside(windows, gaps)
    is_open = sample.end is None and sample.end_frame is None
    damage = damage_text(missing, within=(start or -inf, inf if is_open else end))
    if not is_intact.any():
        raise VideoError(sample.video, f"{damage}, which leaves no window of {settings.seconds:g} s")
    problems = {} if damage is None else {"damaged": damage}
    is_listed = is_intact & _are_outside(windows, unscored_spans(bouts))
    video = VideoWindows(
        sample=sample,
        windows=windows[is_listed],
        num_unscored=int((is_intact & ~is_listed).sum()),
        end=end if damage is None and not sample.is_segment else None,
    )
    return video, problems


def _are_outside(windows: NDArray[np.float64], spans: Iterable[Span]) -> NDArray[np.bool_]:
    """Whether each of the windows (N, 2), in seconds, overlaps none of the spans: (N,)."""
    outside = np.ones(len(windows), np.bool_)
    for start, end in spans:
        outside &= (windows[:, 1] <= start + TIME_TOLERANCE) | (windows[:, 0] >= end - TIME_TOLERANCE)
    return outside


def choose_windows(lengths: Sequence[int], count: int | None, *, seed: int) -> list[NDArray[np.int64]]:
    """The numbers of `count` windows at equal distances, over recordings with `lengths` windows in a row.

    None, or too many: all.
    """
    total = sum(lengths)
    count = total if count is None else min(count, total)
    is_chosen = np.zeros(total, dtype=np.bool_)
    first = np.random.default_rng(seed).random()
    is_chosen[((np.arange(count) + first) * total / count).astype(np.int64)] = True
    return [np.flatnonzero(part) for part in np.split(is_chosen, np.cumsum(lengths)[:-1])]
