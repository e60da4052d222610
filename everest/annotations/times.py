"""When the frames of a video are shown, for files that count frames or milliseconds.

F frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.annotations.bout import Bout
from everest.video.reader import frame_times, probe
from everest.video.source import Video

MOST_FRAMES: Final = 20_000_000  # our choice: 9 days at 25 frames a second; a table of them fits in memory
SHORTEST: Final = 1  # millisecond: subtitles and ELAN have no bout of 0, so a point event is written as this


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VideoTimes:
    """The borders between the frames of a video, and its mean frame rate."""

    borders: NDArray[np.float64]  # (F + 1,) seconds: the start of each frame, and the end of the last
    fps: float

    @classmethod
    def of(cls, video: str | Video) -> VideoTimes:
        """Read the times of a video file."""
        times = frame_times(video)
        fps = probe(video).fps or 1.0
        return cls(borders=np.append(times, times[-1] + 1 / fps), fps=fps)

    @classmethod
    def at_rate(cls, fps: float, frames: int) -> VideoTimes:
        """The times of F frames at a constant rate."""
        return cls(borders=np.arange(frames + 1) / fps, fps=fps)

    @property
    def frames(self) -> int:
        """F."""
        return self.borders.size - 1

    @property
    def seconds(self) -> float:
        """The length of the video."""
        return float(self.borders[-1])


def milliseconds(bout: Bout) -> tuple[int, int]:
    """Start and end of a bout in whole milliseconds; a point event gets the shortest length."""
    start, end = round(bout.start * 1000), round(bout.end * 1000)
    return start, max(end, start + SHORTEST)


def from_milliseconds(start: int, end: int) -> tuple[float, float]:
    """Undo `milliseconds`: seconds; a bout of the shortest length is a point event."""
    return start / 1000, (start if 0 <= end - start <= SHORTEST else end) / 1000
