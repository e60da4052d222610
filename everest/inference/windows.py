"""Windows that slide over long footage, and their views.

A window is processed like a video of its own: the same frames, the same views. Each frame is decoded once,
however much the windows overlap, and dropped after the last window that needs it.

W windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from everest.data.footage import frame_span, read_footages
from everest.data.views import EvalViews
from everest.errors import OptionError
from everest.lists.sample import Sample
from everest.system.events import Emit, notice
from everest.system.types import Span
from everest.video.frame_borders import VideoTimes
from everest.video.reader import VideoError, frame_range, intact_frames, repair_notices, video_damage_text
from everest.video.source import Video
from everest.video.times import TIME_TOLERANCE

MIN_SECONDS: Final = 0.001  # seconds of a window or a step


class Unreadable(NamedTuple):
    """Why a video, the rest of it, or a damaged window has no values."""

    reason: str
    is_window: bool = False


BAD_WINDOW: Final = Unreadable("a damaged window", is_window=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a video."""

    start: float  # seconds
    end: float
    first: int  # number of its first frame
    length: int  # frames


WindowItem = tuple[Window, Tensor] | Unreadable  # a window with its views (V, C, T, H, W) uint8


def check_seconds(**options: float | None) -> None:
    """Raise OptionError for the length or the step of windows that is below 0.001 seconds or not finite."""
    for name, seconds in options.items():
        if seconds is not None and not MIN_SECONDS <= seconds < math.inf:
            raise OptionError(f"{name}: must be a number of seconds from {MIN_SECONDS} on, not {seconds}")


def windows_of(sample: Sample, views: EvalViews, *, window: float | None, step: float | None) -> list[Window]:
    """Return the windows from the start of a video to its end; the last one ends with the video.

    Windows in which no frame is shown are skipped.
    """
    video = VideoTimes.of(sample.video)
    times = video.borders[:-1]  # (F,) starts
    first, length = frame_span(sample)
    begin, end = float(times[first]), float(times[first + length - 1] + 1 / video.fps)
    if window is None:  # as long as a dense clip
        window = views.frames * views.stride / (views.fps or video.fps)
    step = window if step is None else step
    count = max(int((end - begin - window) / step + TIME_TOLERANCE), 0) + 1  # windows that end in the video
    starts = [begin + number * step for number in range(count)]
    if starts[-1] + window < end - TIME_TOLERANCE:
        starts.append(max(end - window, begin))
    windows = []
    for start in starts:
        low, high = frame_range(times, start, start + window)
        low, high = max(low, first), min(high, first + length)
        if low < high:
            window_end = min(start + window, end)
            windows.append(Window(start=start, end=window_end, first=low, length=high - low))
    return windows


def read_window_clips(path: Video, windows: Sequence[Window], views: EvalViews) -> Iterator[Tensor | None]:
    """Yield the views (V, C, T, H, W) uint8 of each window in turn; None if one of its frames is damaged."""
    spans = [(window.first, window.length) for window in windows]
    footages = read_footages(path, spans, views.fps)
    needed = [views.windows(footage) for footage in footages]  # (clips, T) each
    lowest = np.minimum.accumulate([ids.min() for ids in needed][::-1])[::-1]  # from each window to the end
    wanted = np.unique(np.stack(needed)).tolist()
    frames = zip(wanted, intact_frames(path, wanted, channels=views.channels), strict=True)
    resized: dict[int, Tensor | None] = {}  # (C, 1, H', W') by number
    for ids, oldest in zip(needed, lowest, strict=True):
        resized = {frame_id: frame for frame_id, frame in resized.items() if frame_id >= oldest}
        while ids.max() not in resized:
            frame_id, frame = next(frames)
            resized[frame_id] = None if frame is None else views.resize_frames(frame[None])
        frame_ids, indices = np.unique(ids, return_inverse=True)
        intact = [frame for frame_id in frame_ids.tolist() if (frame := resized[frame_id]) is not None]
        is_intact = len(intact) == len(frame_ids)
        yield torch.stack(views.cut_views(torch.cat(intact, dim=1), indices)) if is_intact else None


def read_window_items(
    sample: Sample,
    views: EvalViews,
    *,
    window: float | None,
    step: float | None,
    emit: Emit,
    done: Sequence[Unreadable | None] = (),
) -> Iterator[WindowItem]:
    """Yield the windows of a video; if it is unreadable or damaged, the last item is the reason.

    A window with a damaged frame is BAD_WINDOW.

    Args:
        done: results of the first items, which are skipped; None for a window.
    """
    if done and done[-1] not in (None, BAD_WINDOW):
        return  # it was read to its end
    is_damaged = [result is not None for result in done]
    try:
        windows = windows_of(sample, views, window=window, step=step)
        for text in repair_notices(sample.video):
            emit(notice(text))
        remaining = windows[len(done) :]
        clips = read_window_clips(sample.video, remaining, views) if remaining else iter(())
        for current, clip in zip(remaining, clips, strict=True):
            yield BAD_WINDOW if clip is None else (current, clip)
            is_damaged.append(clip is None)
            emit({"event": "window", "done": len(is_damaged), "windows": len(windows)})
        is_open = sample.end is None and sample.end_frame is None
        damaged = _damaged_spans(windows, is_damaged)
        within = (windows[0].start or -math.inf, math.inf if is_open else windows[-1].end)
        problem = video_damage_text(sample.video, damaged, within=within)
    except VideoError as error:
        problem = error.reason
    if problem is not None:
        yield Unreadable(problem)


def _damaged_spans(windows: Sequence[Window], is_damaged: Sequence[bool]) -> Iterator[Span]:
    """Yield the seconds of each run of damaged windows that no intact neighbor covers; all if none remain."""
    for is_run_damaged, run in groupby(range(len(windows)), key=is_damaged.__getitem__):
        indices = list(run)
        if not is_run_damaged:
            continue
        first, last = indices[0], indices[-1]
        full_span = start, end = windows[first].start, windows[last].end
        if first > 0:
            start = max(start, windows[first - 1].end)
        if last + 1 < len(windows):
            end = min(end, windows[last + 1].start)
        yield (start, end) if start < end else full_span
