"""The classes or numbers of a live source: a window slides over its frames as they arrive.

A thread reads, decodes and resizes frames; windows are computed outside of it. If the model is slower than
the source, a pipe is read more slowly, and windows of a camera or network stream are skipped, so that the
latency does not grow. A window has the views and the answers of the same frames in a file.

F frames, T frames of a clip.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from everest.data.footage import Footage, Timeline
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.inference.model import OpenedModel
from everest.inference.predictions import check_windows
from everest.inference.top_classes import answers_of, check_options
from everest.system.events import Report, notice
from everest.video.live import can_reconnect, live_frames
from everest.video.reader import TOLERANCE, luma
from everest.video.stream import VideoError

WAITS: Final = (0.5, 1.0, 2.0, 5.0)  # seconds before each further attempt to connect; the last one repeats
LATE: Final = 1.0  # seconds, or a step if that is longer, that windows may be late before some are skipped
HELD: Final = 2.0  # seconds, or a step if that is longer, of frames that are held beyond a window
LOOK: Final = 0.1  # seconds between two looks at the stop request


@dataclass(frozen=True, slots=True, eq=False)
class HeldFrame:
    """A frame of the buffer."""

    image: Tensor  # (C, 1, H', W') uint8, as `EvalViews.resized`
    seconds: float  # from the first frame of the source
    arrived: float  # time.monotonic()


@dataclass(frozen=True, slots=True, eq=False)
class LiveWindow:
    """The frames of a window."""

    start: float  # seconds
    end: float
    frames: list[HeldFrame]  # F > 0
    shown_until: float  # seconds: when its last frame ends

    def clips(self, views: EvalViews) -> Tensor:
        """The views (V, C, T, H, W) uint8, of the frames that a file would give."""
        numbers = None
        if views.fps is not None:
            seconds = np.array([frame.seconds for frame in self.frames])
            numbers = Timeline(seconds, self.shown_until).numbers(views.fps, 0, len(seconds))
        ids = views.windows(Footage(0, len(self.frames), numbers))  # (clips, T)
        return torch.stack(views.cut(torch.cat([frame.image for frame in self.frames], dim=1), ids))


@dataclass(eq=False, kw_only=True)
class LiveBuffer:
    """The last frames of a source, which a thread adds, and the next window."""

    source: str
    views: EvalViews
    window: float | None  # seconds; None: of a clip
    step: float | None  # None: `window`
    retry: float  # seconds without a frame after which the source has ended
    report: Report
    frames: deque[HeldFrame] = field(default_factory=deque)
    changed: threading.Condition = field(default_factory=threading.Condition)
    start: float = 0.0  # of the next window
    seen: float = 0.0  # end of the windows so far
    newest: HeldFrame | None = None
    fps: float = 0.0  # that the source states
    resolved: tuple[float, float] = (0.0, 0.0)  # seconds of the window and the step, once connected
    dropped: int = 0  # frames of skipped windows
    connections: int = 0
    is_open: bool = False  # whether a connection gives frames
    ended: bool = False
    problem: Exception | None = None  # why a source that never had a frame, or a pipe, has ended

    def fill(self) -> None:
        """Read until the source ends, and connect again where that is possible; for a thread."""
        last, attempt, returns = time.monotonic(), 0, can_reconnect(self.source)
        try:
            while True:
                before, reason = self.connections, "the stream has ended"
                try:
                    self._read()
                    problem = None
                except VideoError as error:
                    problem, reason = error, error.reason
                finally:
                    self.is_open = False
                if self.newest is not None and self.connections > before:
                    last, attempt = self.newest.arrived, 0
                wait = WAITS[min(attempt, len(WAITS) - 1)]
                if not returns or time.monotonic() + wait - last > self.retry:
                    self.problem = None if returns and self.connections else problem
                    return
                self.report(notice(f"{self.source}: {reason}; connecting again in {wait:g} s"))
                time.sleep(wait)
                attempt += 1
        except Exception as error:  # raised by the thread that computes
            self.problem = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _read(self) -> None:
        """Read one connection. Its times continue those before it, by the clock."""
        offset, is_first, returns = 0.0, True, can_reconnect(self.source)
        for frame in live_frames(self.source, connected=self._connected):
            image = torch.from_numpy(frame.pixels if self.views.channels == 3 else luma(frame.pixels))
            image = self.views.resized(image[None])
            with self.changed:
                if is_first and self.newest is not None:
                    offset = self.newest.seconds + frame.arrived - self.newest.arrived
                seconds = frame.seconds + offset
                if is_first or (self.frames and image.shape != self.frames[-1].image.shape):
                    while not returns and self.is_complete():
                        self.changed.wait()
                    self.frames.clear()  # no window spans two connections, or two shapes
                    self.start = seconds
                self.connections, is_first, self.is_open = self.connections + is_first, False, True
                held = self.resolved[0] + max(self.resolved[1], HELD)
                while self.frames and seconds - self.frames[0].seconds > held:
                    if returns:
                        self.dropped += self.frames.popleft().seconds > self.seen - TOLERANCE
                    elif self.is_complete():
                        self.changed.wait()  # until a window is taken
                    else:
                        break  # this frame, after a gap, completes the window
                self.newest = HeldFrame(image, seconds, frame.arrived)
                self.frames.append(self.newest)
                self.changed.notify_all()

    def _connected(self, fps: float) -> None:
        """Set the seconds of window and step, now that the frame rate is known."""
        if self.window is None and not (fps or self.views.fps):
            raise RecipeError("--window: the source states no frame rate; set the seconds of a window")
        window = self.window or self.views.seconds(fps)
        self.fps, self.resolved = fps, (window, self.step or window)

    def take(self) -> LiveWindow | None:
        """Wait for the next window; None if it is not there after a moment, or has no frame."""
        with self.changed:
            if not self.is_complete():
                self.changed.wait(LOOK)
            if not self.is_complete():
                return None
            window, step = self.resolved
            late = self.frames[-1].seconds - self.start - window
            if can_reconnect(self.source) and late > max(step, LATE):
                self.start += late // step * step
                skipped = self._pop()
                self.dropped += sum(frame.seconds > self.seen - TOLERANCE for frame in skipped)
            start, end = self.start, self.start + window
            inside = [frame for frame in self.frames if start - TOLERANCE <= frame.seconds < end - TOLERANCE]
            following = [frame.seconds for frame in self.frames if frame.seconds >= end - TOLERANCE]
            self.start, self.seen = start + step, end
            self._pop()
            self.changed.notify_all()
        return LiveWindow(start, end, inside, min([end, *following[:1]])) if inside else None

    def is_complete(self) -> bool:
        """Whether the next window has all its frames: a later one is there, or none will be."""
        if not self.frames:
            return False
        last = self.frames[-1].seconds + (1 / self.fps if self.fps and not self.is_open else 0.0)
        return last >= self.start + self.resolved[0] - TOLERANCE

    def _pop(self) -> list[HeldFrame]:
        """Remove the frames before the next window."""
        removed = []
        while self.frames and self.frames[0].seconds < self.start - TOLERANCE:
            removed.append(self.frames.popleft())
        return removed


def predict_live(
    model: OpenedModel,
    source: str,
    *,
    window: float | None,
    step: float | None,
    top: int | None,
    retry: float,
    emit: Callable[[dict[str, Any]], None],
    report: Report,
    is_stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Predict windows of a live source until it ends, or until a stop is requested.

    Args:
        source: see `live_frames`.
        window, step, top: see `predict_timeline`; no window is shorter than `window`, not even the last.
        retry: seconds without a frame after which a camera or network stream has ended.
        emit: receives each window: `start` and `end` in seconds since the first frame, `predictions` or
            `heads`, `time` (ISO 8601, UTC) when its last frame arrived, `latency` in seconds since then, and
            `dropped`, the number of frames so far that were skipped because the model is slower.
        is_stopped: called several times a second.
    Returns:
        The number of `windows`, `dropped` frames and `connections`, and `latency`: `p50` and `p95`, or null.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: the default window is not known; see also `check_seconds` and `check_options`.
        VideoError: the source cannot be opened, or a pipe is damaged.
    """
    classes, views = model.classes, model.views
    check_options(classes.heads, top=top)
    check_windows(views, window=window, step=step)
    buffer = LiveBuffer(source=source, views=views, window=window, step=step, retry=retry, report=report)
    threading.Thread(target=buffer.fill, daemon=True).start()
    latencies: list[float] = []
    while not is_stopped():
        current = buffer.take()
        if current is None:
            if buffer.ended and not buffer.is_complete():
                break
            continue
        mean = model.mean_answers(model.answers(current.clips(views)))
        latencies.append(time.monotonic() - current.frames[-1].arrived)
        arrived = datetime.now(UTC) - timedelta(seconds=latencies[-1])
        emit(
            {
                **{"start": round(current.start, 3), "end": round(current.end, 3)},
                **answers_of(mean, classes, top),
                **{"time": arrived.isoformat(timespec="milliseconds"), "latency": round(latencies[-1], 4)},
                "dropped": buffer.dropped,
            }
        )
    if buffer.problem is not None:
        raise buffer.problem
    p50, p95 = np.quantile(latencies, [0.5, 0.95]).round(4).tolist() if latencies else (None, None)
    return {
        "windows": len(latencies),
        "dropped": buffer.dropped,
        "connections": buffer.connections,
        "latency": {"p50": p50, "p95": p95},
    }
