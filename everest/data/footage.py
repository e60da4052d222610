"""The frames of a sample to choose from: all of a video or segment, or those at `data.fps`.

F frames of the file, J frames to choose from, T frames of a clip. At `data.fps`, frame j is the one that the
file shows nearest to the time j / fps after the first frame. A variable frame rate is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everest.data.frames import FrameIds
from everest.lists.sample import Sample
from everest.video.facts import inspect_video
from everest.video.reader import VideoError, frame_times, frames_between, video_info
from everest.video.source import Video, as_video
from everest.video.times import TIME_TOLERANCE

FrameSpan = tuple[int, int]  # index of the first frame, number of frames


@dataclass(frozen=True, slots=True, eq=False)
class FrameTimes:
    """When the frames of a video are shown."""

    seconds: NDArray[np.float64]  # (F,) from the first frame
    end: float  # seconds: when the last frame ends

    @classmethod
    def of(cls, path: str | Video) -> FrameTimes:
        """Read the times of a video."""
        path = as_video(path)
        seconds = frame_times(path)
        facts = inspect_video(path)
        last = facts.index.last_duration / facts.second
        if last <= 0 and seconds.size > 1:
            last = float(seconds[-1] - seconds[-2])
        return cls(seconds, float(seconds[-1]) + (last if last > 0 else 1 / (facts.info.fps or 1)))

    def at_rate(self, fps: float, first: int, length: int) -> NDArray[np.int64]:
        """The frames at `fps` among the `length` frames of the file from `first` on.

        Returns:
            (J,) ascending numbers of frames of the file, at least one; the earlier of two equally near.
        """
        after = first + length
        seconds = self.seconds[first:after] - self.seconds[first]
        end = (self.seconds[after] if after < self.seconds.size else self.end) - self.seconds[first]
        middles = (seconds[1:] + seconds[:-1]) / 2  # at a middle, both frames are equally near
        count = max(int((end + TIME_TOLERANCE) * fps + 0.5), 1)  # J, rounded as containers round times
        return first + np.searchsorted(middles, np.arange(count) / fps - TIME_TOLERANCE)


@dataclass(frozen=True, slots=True, eq=False)
class Footage:
    """A video or segment: J frames to choose from, and their numbers in the file."""

    first: int  # frame of the file
    length: int  # frames of the file
    shown: NDArray[np.int64] | None = None  # (J,) frames of the file at `data.fps`; None: each frame

    @property
    def num_frames(self) -> int:
        """J."""
        return self.length if self.shown is None else self.shown.size

    def numbers(self, ids: FrameIds) -> FrameIds:
        """The numbers in the file of the frames `ids`, each from 0 to J - 1."""
        return self.first + ids if self.shown is None else self.shown[ids]


def footage_of(sample: Sample, fps: float | None) -> Footage:
    """The footage of a sample, at `fps` frames per second (None: all frames of the file)."""
    return footages_of_spans(sample.video, [frame_span(sample)], fps)[0]


def footages_of_spans(video: Video, spans: Sequence[FrameSpan], fps: float | None) -> list[Footage]:
    """The footage of parts of a video; at `fps`, times start with the part."""
    if fps is None:
        return [Footage(first, length) for first, length in spans]
    times = FrameTimes.of(video)
    return [Footage(first, length, times.at_rate(fps, first, length)) for first, length in spans]


def frame_span(sample: Sample) -> FrameSpan:
    """The span of a sample in its video; VideoError if the video has none of its frames."""
    if sample.start is not None or sample.end is not None:
        first, end = frames_between(sample.video, sample.start, sample.end)
        return first, end - first
    count = video_info(sample.video).frames
    first = sample.start_frame or 0
    end = count if sample.end_frame is None else min(sample.end_frame, count)
    if first >= end:
        until = "" if sample.end_frame is None else f" to {sample.end_frame}"
        raise VideoError(sample.video, f"no frames from {first}{until}; there are {count}")
    return first, end - first


def frame_bytes(video: Video, frames: int, channels: int = 3) -> int:
    """The bytes of a number of frames of a video."""
    info = video_info(video)
    return frames * info.height * info.width * channels
