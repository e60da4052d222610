"""Windows that slide over long footage, and the pieces of their clips.

A window is processed like a video of its own: the same frames, the same views. Each frame is decoded once,
however much the windows overlap, and dropped after the last piece that needs it.

W windows, T frames of a clip, P pieces, M of a clip, S frames of a piece, C channels, H W pixels, F frames of
a video.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from everest.data.footage import FrameSpan, frame_span, read_footages
from everest.data.views import EvalViews
from everest.errors import OptionError
from everest.lists.sample import Sample
from everest.system.events import Emit, notice
from everest.system.types import Span
from everest.video.frame_borders import VideoTimes
from everest.video.reader import VideoError, intact_frames, repair_notices, video_damage_text
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
    span: FrameSpan


def check_seconds(**options: float | None) -> None:
    """Raise OptionError for the length or the step of windows that is below 0.001 seconds or not finite."""
    for name, seconds in options.items():
        if seconds is not None and not MIN_SECONDS <= seconds < math.inf:
            raise OptionError(f"{name}: must be a number of seconds from {MIN_SECONDS} on, not {seconds}")


def step_on_grid(views: EvalViews, *, window: float, step: float) -> float:
    """The step in seconds, rounded so that overlapping windows share frames.

    The frames of a clip that spans its window are window / T seconds apart: windows begin on this grid.
    """
    if views.sampling == "dense":
        return step
    grid = window / views.frames
    return max(round(step / grid), 1) * grid


def windows_of(sample: Sample, views: EvalViews, *, window: float | None, step: float | None) -> list[Window]:
    """Return the windows from the start of a video to its end; the last one ends with the video.

    Windows in which no frame is shown are skipped.
    """
    video = VideoTimes.of(sample.video)
    times = video.borders[:-1]  # (F,) starts
    first, length, *_ = frame_span(sample)
    begin, end = float(times[first]), float(times[first + length - 1] + 1 / video.fps)
    if window is None:  # as long as a dense clip
        window = views.frames * views.stride / (views.fps or video.fps)
    step = window if step is None else step
    count = max(int((end - begin - window) / step + TIME_TOLERANCE), 0) + 1  # windows that end in the video
    starts = begin + step * np.arange(count)
    if starts[-1] + window < end - TIME_TOLERANCE:
        starts = np.append(starts, max(end - window, begin))
    ends = np.minimum(starts + window, end)
    numbers = np.searchsorted(times, np.stack([starts, starts + window], axis=1) - TIME_TOLERANCE)
    frames = numbers.clip(first, first + length)  # (W, 2)
    spans = FrameSpan.of_seconds(video.borders, frames, starts, ends)
    rows = zip(starts.tolist(), ends.tolist(), spans, strict=True)
    return [Window(start=start, end=end, span=span) for start, end, span in rows if span.length > 0]


class PieceFrames(NamedTuple):
    """Successive pieces that are encoded together; see everest.inference.pieces."""

    encoder: int
    first: int  # number of the first piece
    frames: Tensor  # (P, crops, C, S, H, W) uint8; a damaged piece is black


class WindowPieces(NamedTuple):
    """The pieces of the clips of a window."""

    window: Window
    numbers: list[NDArray[np.int64]]  # (clips, M) for each encoder
    oldest: list[int]  # for each encoder, the first piece that a later window needs


WindowItem = PieceFrames | WindowPieces | Unreadable


class _Pieces:
    """The distinct pieces of S frames in the clips (W, clips, T) of windows, in the order of their frames.

    They are read and encoded in groups that depend on all windows of a video and on `batch`, not on the
    windows that are left. So values are the same, to the bit, after a resume.
    """

    def __init__(self, clips: NDArray[np.int64], size: int, *, batch: int, done: int) -> None:
        rows = sliding_window_view(clips, size, axis=2)  # (W, clips, M, S)
        self.frames, numbers = np.unique(rows.reshape(-1, size), axis=0, return_inverse=True)  # (P, S)
        self.numbers = numbers.reshape(rows.shape[:3])
        self.per_group = batch * self.numbers[0].size
        self.unread = deque(np.unique(self.numbers[done:] // self.per_group).tolist())  # groups
        lowest = self.numbers.min(axis=(1, 2))
        # (W,) the first piece that a window after this one needs
        self.oldest = np.minimum.accumulate(np.append(lowest[1:], len(self.frames))[::-1])[::-1]

    def frames_of(self, group: int) -> NDArray[np.int64]:
        """The frames (P, S) of the pieces of a group."""
        return self.frames[group * self.per_group : (group + 1) * self.per_group]

    def read_for(self, window: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield the first piece and the frames of each unread group that a window needs; then it is read."""
        last_group = self.numbers[window].max() // self.per_group
        while self.unread and self.unread[0] <= last_group:
            group = self.unread.popleft()
            yield group * self.per_group, self.frames_of(group)


class _FrameBuffer:
    """The frames of a video that unread pieces need, in all crops. Each is decoded and resized once."""

    def __init__(self, path: Video, views: EvalViews, kinds: Sequence[_Pieces]) -> None:
        self.views, self.kinds = views, kinds
        groups = (kind.frames_of(group) for kind in kinds for group in kind.unread)
        wanted = sorted({frame for group in groups for frame in group.ravel().tolist()})
        self.decoded = zip(wanted, intact_frames(path, wanted, channels=views.channels), strict=True)
        self.frames: dict[int, Tensor] = {}  # (crops, C, 1, H, W) by number; black if damaged
        self.damaged: set[int] = set()

    def stack(self, pieces: NDArray[np.int64]) -> Tensor:
        """Decode up to the last frame of pieces (P, S); returns them as (P, crops, C, S, H, W)."""
        while pieces.max() not in self.frames:
            self._decode_next()
        return torch.stack(
            [torch.cat([self.frames[number] for number in piece], dim=2) for piece in pieces.tolist()]
        )

    def _decode_next(self) -> None:
        number, frame = next(self.decoded)
        views = self.views
        if frame is None:
            self.damaged.add(number)
            self.frames[number] = torch.zeros(views.crops, views.channels, 1, *views.size, dtype=torch.uint8)
        else:
            self.frames[number] = torch.stack(views.cut_crops(views.resize_frames(frame[None])))

    def drop_read(self) -> None:
        """Drop the frames before all unread pieces."""
        firsts = [kind.frames_of(kind.unread[0]).min() for kind in self.kinds if kind.unread]
        oldest = min(firsts, default=math.inf)
        self.frames = {number: frame for number, frame in self.frames.items() if number >= oldest}


def read_pieces(
    path: Video,
    windows: Sequence[Window],
    views: EvalViews,
    sizes: Sequence[int],
    *,
    batch: int,
    done: int = 0,
) -> Iterator[PieceFrames | WindowPieces | None]:
    """Yield the windows after the first `done`, each after the pieces that it needs; None if one is damaged.

    Each frame is decoded and resized once, and each piece yielded once.

    Args:
        sizes: frames S of a piece of each encoder.
        batch: windows whose pieces are encoded together, at most.
    """
    footages = read_footages(path, [window.span for window in windows], views.fps)
    clips = np.stack([views.clip_frame_ids(footage) for footage in footages])  # (W, clips, T)
    kinds = [_Pieces(clips, size, batch=batch, done=done) for size in sizes]
    buffer = _FrameBuffer(path, views, kinds)
    for window in range(done, len(windows)):
        for encoder, kind in enumerate(kinds):
            for first, pieces in kind.read_for(window):
                yield PieceFrames(encoder, first, buffer.stack(pieces))
                buffer.drop_read()
        if buffer.damaged.isdisjoint(clips[window].flat):
            numbers = [kind.numbers[window] for kind in kinds]
            yield WindowPieces(windows[window], numbers, [int(kind.oldest[window]) for kind in kinds])
        else:
            yield None


def read_window_items(
    sample: Sample,
    views: EvalViews,
    sizes: Sequence[int],
    *,
    window: float | None,
    step: float | None,
    batch: int,
    emit: Emit,
    done: Sequence[Unreadable | None] = (),
) -> Iterator[WindowItem]:
    """Yield the windows of a video and their pieces; if it is unreadable or damaged, last the reason.

    A window with a damaged frame is BAD_WINDOW.

    Args:
        sizes, batch: see `read_pieces`.
        done: results of the first items, which are skipped; None for a window.
    """
    if done and done[-1] not in (None, BAD_WINDOW):
        return  # it was read to its end
    is_damaged = [result is not None for result in done]
    try:
        windows = windows_of(sample, views, window=window, step=step)
        for text in repair_notices(sample.video):
            emit(notice(text))
        for item in read_pieces(sample.video, windows, views, sizes, batch=batch, done=len(done)):
            yield BAD_WINDOW if item is None else item
            if not isinstance(item, PieceFrames):
                is_damaged.append(item is None)
                emit({"event": "window", "done": len(is_damaged), "windows": len(windows)})
        is_open = sample.end is None and sample.end_frame is None
        damaged = _damaged_spans(windows, is_damaged)
        within = (windows[0].start or -math.inf, math.inf if is_open else windows[-1].end)
        problem = video_damage_text(sample.video, damaged, within=within)
    except VideoError as error:
        problem = error.reason
    if problem is not None:
        yield Unreadable(problem)


def read_segment_items(
    segments: Sequence[Sample],
    views: EvalViews,
    sizes: Sequence[int],
    *,
    batch: int,
    done: int = 0,
) -> Iterator[WindowItem]:
    """Yield the segments of a video after the first `done` as windows, and their pieces.

    A segment that has no frame, or a damaged one, is Unreadable. See `read_window_items`.
    """
    spans = list(map(_find_span, segments))
    windows = [Window(start=0.0, end=0.0, span=span) for span in spans if isinstance(span, FrameSpan)]
    num_done = sum(isinstance(span, FrameSpan) for span in spans[:done])
    items = read_pieces(segments[0].video, windows, views, sizes, batch=batch, done=num_done)
    for number, span in enumerate(spans[done:], start=done):
        try:
            if isinstance(span, Unreadable):
                yield span
                continue
            for item in items:
                yield Unreadable("a damaged frame") if item is None else item
                if not isinstance(item, PieceFrames):
                    break
        except VideoError as error:  # all segments that are left
            yield from [Unreadable(error.reason)] * (len(spans) - number)
            return


def _find_span(segment: Sample) -> FrameSpan | Unreadable:
    """The frames of a segment, or why it has none."""
    try:
        return frame_span(segment)
    except VideoError as error:
        return Unreadable(error.reason)


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
