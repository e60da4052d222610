"""The frames of a sample to choose from: all frames of a video or segment, or frames at `data.fps`.

F frames of the file, J frames to choose from, T frames of a clip. At `data.fps`, frame j is the one that the
file shows nearest to the time j / fps after the first frame. A variable frame rate is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from everest.data.frames import FrameIds
from everest.lists.sample import Sample
from everest.system.types import Floats
from everest.video.frame_borders import VideoTimes
from everest.video.metadata import inspect_video
from everest.video.reader import VideoError, frame_times, frames_between, video_info
from everest.video.source import Video, as_video
from everest.video.times import TIME_TOLERANCE

FRAME_TOLERANCE: Final = 1e-3  # frames: lists have times in microseconds


class FrameSpan(NamedTuple):
    """The frames of a part of a video. A part in seconds may begin and end between two frames."""

    first: int  # index of the first frame
    length: int  # number of frames
    begin: float  # of the part, in frames from `first`
    extent: float  # of the part, in frames

    @classmethod
    def of_frames(cls, first: int, length: int) -> Self:
        """A part of whole frames."""
        return cls(first, length, 0.0, length)

    @classmethod
    def of_seconds(cls, borders: Floats, spans: Floats, starts: Floats, ends: Floats) -> list[Self]:
        """The parts from `starts` to `ends` seconds (W,) of a video with `borders` (F + 1,) between frames.

        Args:
            spans: (W, 2) the first frame of each part, and the one after its last.
        """
        low, high = _find_positions(borders, starts), _find_positions(borders, ends)
        begins = low - spans[:, 0] + FRAME_TOLERANCE
        rows = zip(spans[:, 0], spans[:, 1] - spans[:, 0], begins, high - low, strict=True)
        return [
            cls(int(first), int(length), float(begin), float(extent)) for first, length, begin, extent in rows
        ]


def _find_positions(borders: Floats, seconds: Floats) -> Floats:
    """Where times (W,) are among the frames of a video: 2.5 is the middle of frame 2."""
    frames = np.searchsorted(borders, seconds, side="right").clip(1, borders.size - 1) - 1
    lengths = borders[frames + 1] - borders[frames]
    return frames + ((seconds - borders[frames]) / lengths).clip(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class FrameTimes:
    """When the frames of a video are shown."""

    seconds: NDArray[np.float64]  # (F,) seconds after the first frame
    end: float  # seconds: when the last frame ends

    @classmethod
    def of(cls, path: str | Video) -> FrameTimes:
        """Read the times of a video."""
        path = as_video(path)
        seconds = frame_times(path)
        metadata = inspect_video(path)
        duration = metadata.index.last_duration / metadata.second
        if duration <= 0 and seconds.size > 1:
            duration = float(seconds[-1] - seconds[-2])
        return cls(seconds, float(seconds[-1]) + (duration if duration > 0 else 1 / (metadata.info.fps or 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Footage:
    """A video or segment: J frames to choose from, and their numbers in the file."""

    first: int  # number of the first frame in the file
    length: int  # number of frames in the file
    begin: float  # where the part begins, in frames from `first`
    extent: float  # how long it is, in frames
    frame_ids: NDArray[np.int64] | None = None  # (J,) ascending frame numbers in the file; None: every frame

    @property
    def num_frames(self) -> int:
        """The number J of frames to choose from."""
        return self.length if self.frame_ids is None else self.frame_ids.size

    def file_ids(self, ids: FrameIds) -> FrameIds:
        """The numbers in the file of the frames `ids`, which count from 0 to J - 1."""
        return self.first + ids if self.frame_ids is None else self.frame_ids[ids]


def read_footage(sample: Sample, fps: float | None) -> Footage:
    """The footage of a sample, at `fps` frames per second (None: all frames of the file)."""
    return read_footages(sample.video, [frame_span(sample)], fps)[0]


def read_footages(video: Video, spans: Sequence[FrameSpan], fps: float | None) -> list[Footage]:
    """The footage of parts of a video; at `fps`, each part starts at time 0 and has at least one frame."""
    if fps is None:
        return [Footage(*span) for span in spans]
    times = FrameTimes.of(video)
    footages = []
    for first, length, *_ in spans:
        after = first + length
        seconds = times.seconds[first:after] - times.seconds[first]
        end = (times.seconds[after] if after < times.seconds.size else times.end) - times.seconds[first]
        num_frames = max(int((end + TIME_TOLERANCE) * fps + 0.5), 1)  # J, rounded as containers round times
        midpoints = (seconds[1:] + seconds[:-1]) / 2  # at a midpoint, the earlier frame is taken
        frame_ids = first + np.searchsorted(midpoints, np.arange(num_frames) / fps - TIME_TOLERANCE)
        footages.append(Footage(first, length, 0.0, num_frames, frame_ids))
    return footages


def frame_span(sample: Sample) -> FrameSpan:
    """The span of a sample in its video; VideoError if the video has none of its frames."""
    if sample.start is not None or sample.end is not None:
        span = frames_between(sample.video, sample.start, sample.end)
        borders = VideoTimes.of(sample.video).borders
        start, end = sample.start or 0.0, borders[-1] if sample.end is None else sample.end
        return FrameSpan.of_seconds(borders, np.array([span]), np.array([start]), np.array([end]))[0]
    num_frames = video_info(sample.video).num_frames
    first = sample.start_frame or 0
    end = num_frames if sample.end_frame is None else min(sample.end_frame, num_frames)
    if first >= end:
        end_text = "" if sample.end_frame is None else f" to {sample.end_frame}"
        raise VideoError(sample.video, f"no frames from {first}{end_text}; there are {num_frames}")
    return FrameSpan.of_frames(first, end - first)
