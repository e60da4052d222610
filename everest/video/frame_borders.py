"""The borders between the frames of a video, in seconds.

F frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everest.system.types import Floats
from everest.video.reader import frame_times, video_info
from everest.video.source import Video


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VideoTimes:
    """The borders between the frames of a video, and its mean frame rate."""

    borders: Floats  # (F + 1,) seconds: the start of each frame, and the end of the last frame
    fps: float

    @classmethod
    def of(cls, video: str | Video) -> VideoTimes:
        """Read the times of a video file."""
        times = frame_times(video)
        fps = video_info(video).fps or 1.0
        return cls(borders=np.append(times, times[-1] + 1 / fps), fps=fps)

    @classmethod
    def from_rate(cls, fps: float, num_frames: int) -> VideoTimes:
        """The times of F frames at a constant rate."""
        return cls(borders=np.arange(num_frames + 1) / fps, fps=fps)

    @property
    def num_frames(self) -> int:
        """The number of frames F."""
        return self.borders.size - 1

    @property
    def seconds(self) -> float:
        """The length of the video."""
        return float(self.borders[-1])
