"""Windows that slide over long footage, and their views.

A window is processed like a video of its own: the same frames, the same views. Each frame is decoded once,
however much the windows overlap, and dropped after the last window that needs it.

W windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, takewhile
from typing import Final

import numpy as np
import torch
from torch import Tensor

from everest.data.footage import footages_of_spans, frame_span
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.video.reader import (
    VideoError,
    frame_range,
    frame_times,
    intact_frames,
    known_damage,
    probe,
    repairs,
)
from everest.video.source import Video
from everest.video.times import TIME_TOLERANCE

SHORTEST: Final = 0.001  # seconds of a window or a step
DAMAGED: Final = "a damaged window"

# A window with its views (V, C, T, H, W) uint8, or why it, or the rest of a video, is unreadable.
Item = tuple[Sample, tuple["Window", Tensor] | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a video."""

    start: float  # seconds
    end: float
    first: int  # number of its first frame
    length: int  # frames


def check_seconds(**options: float | None) -> None:
    """Raise RecipeError for the length or the step of windows that is below 0.001 seconds or not finite."""
    for name, seconds in options.items():
        if seconds is not None and not SHORTEST <= seconds < math.inf:
            raise RecipeError(f"--{name}: must be a number of seconds from {SHORTEST} on, not {seconds}")


def windows_of(sample: Sample, views: EvalViews, *, window: float | None, step: float | None) -> list[Window]:
    """Return the windows from the start of a video to its end; the last one ends with the video.

    Windows in which no frame is shown are skipped.
    """
    times = frame_times(sample.video)
    fps = probe(sample.video).fps or 1.0
    first, length = frame_span(sample)
    begin, end = float(times[first]), float(times[first + length - 1] + 1 / fps)
    window = views.seconds(fps) if window is None else window
    step = window if step is None else step
    within = max(int((end - begin - window) / step + TIME_TOLERANCE), 0) + 1  # windows that end in the video
    starts = [begin + number * step for number in range(within)]
    if starts[-1] + window < end - TIME_TOLERANCE:
        starts.append(max(end - window, begin))
    windows = []
    for start in starts:
        inside, after = frame_range(times, start, start + window)
        inside, after = max(inside, first), min(after, first + length)
        if inside < after:
            until = min(start + window, end)
            windows.append(Window(start=start, end=until, first=inside, length=after - inside))
    return windows


def window_clips(path: Video, windows: Sequence[Window], views: EvalViews) -> Iterator[Tensor | None]:
    """Yield the views (V, C, T, H, W) uint8 of each window in turn; None if one of its frames is damaged."""
    spans = [(window.first, window.length) for window in windows]
    footages = footages_of_spans(path, spans, views.fps)
    needed = [views.windows(footage) for footage in footages]  # (clips, T) each
    lowest = np.minimum.accumulate([ids.min() for ids in needed][::-1])[::-1]  # from each window to the end
    wanted = np.unique(np.stack(needed)).tolist()
    frames = zip(wanted, intact_frames(path, wanted, channels=views.channels), strict=True)
    resized: dict[int, Tensor | None] = {}  # (C, 1, H', W') by number
    for ids, oldest in zip(needed, lowest, strict=True):
        resized = {number: frame for number, frame in resized.items() if number >= oldest}
        while ids.max() not in resized:
            number, frame = next(frames)
            resized[number] = None if frame is None else views.resized(frame[None])
        numbers, indices = np.unique(ids, return_inverse=True)
        shown = [frame for number in numbers.tolist() if (frame := resized[number]) is not None]
        is_intact = len(shown) == len(numbers)
        yield torch.stack(views.cut(torch.cat(shown, dim=1), indices)) if is_intact else None


def window_items(
    samples: Sequence[Sample],
    views: EvalViews,
    *,
    window: float | None,
    step: float | None,
    report: Report,
    done: Sequence[tuple[str, str | None]] = (),
) -> Iterator[Item]:
    """Yield the windows of each video in turn; of an unreadable or damaged one, the last item is the reason.

    A window with a damaged frame is DAMAGED.

    Args:
        done: the first items, which are skipped: the video of each, and the reason if it is one.
    Raises:
        RecipeError: a video of `done` has other windows now, or is unreadable now.
    """
    position = 0  # number of items passed
    for sample in samples:
        reads_otherwise = RecipeError(
            f"{sample.video_id}: reads otherwise than in the interrupted call; start again with --overwrite"
        )
        try:
            windows = windows_of(sample, views, window=window, step=step)
            for text in repairs(sample.video):
                report(notice(text))
            rows = done[position : position + len(windows)]
            passed = list(takewhile(lambda row: row[1] in (None, DAMAGED), rows))
            if any(video != sample.video_id for video, _ in passed):
                raise reads_otherwise
            is_damaged = [reason is not None for _, reason in passed]
            position += len(passed)
            problem = rows[len(passed)][1] if len(passed) < len(rows) else None  # it ended the video there
            remaining = windows[len(passed) :] if problem is None else []
            clips = window_clips(sample.video, remaining, views) if remaining else iter(())
            for current, clip in zip(remaining, clips, strict=True):
                yield sample, DAMAGED if clip is None else (current, clip)
                is_damaged.append(clip is None)
                report({"event": "window", "done": len(is_damaged), "windows": len(windows)})
                position += 1
            is_open = sample.end is None and sample.end_frame is None
            damaged = [(each.start, each.end) for each in compress(windows, is_damaged)]
            within = (windows[0].start or -math.inf, math.inf if is_open else windows[-1].end)
            problem = problem or known_damage(sample.video, damaged, within=within)  # with windows left out
            if problem is not None:
                raise VideoError(sample.video, problem)
        except VideoError as error:
            if position >= len(done):
                yield sample, error.reason
            elif done[position][0] != sample.video_id or done[position][1] is None:
                raise reads_otherwise from error
            position += 1
