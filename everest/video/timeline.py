"""Frames of a video at another rate: for each time of a timeline, the frame that is shown nearest to it.

F frames of the file, J frames of a timeline. Timeline frame j is at j / fps seconds after the first frame.
Times are those at which a file shows its frames, so that a variable frame rate is followed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everest.video.file import inspect_video
from everest.video.reader import TOLERANCE, frame_times, image_folder
from everest.video.source import Video, as_video
from everest.video.stream import VideoError


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """When the frames of a video are shown."""

    seconds: NDArray[np.float64]  # (F,) from the first frame
    end: float  # seconds: when the last frame ends

    @classmethod
    def of(cls, path: str | Video) -> Timeline:
        """Read the times of a video.

        Raises:
            VideoError: it is unreadable, or a folder of images, which has no times.
        """
        path = as_video(path)
        if image_folder(path) is not None:
            raise VideoError(
                path,
                "a folder of images has no frame rate; set data.fps to null, or make a video of the images "
                "with everest prepare encode",
            )
        seconds, video = frame_times(path), inspect_video(path)
        last = video.index.last_duration / video.second
        if last <= 0 and seconds.size > 1:
            last = float(seconds[-1] - seconds[-2])
        return cls(seconds, float(seconds[-1]) + (last if last > 0 else 1 / (video.info.fps or 1)))

    def numbers(self, fps: float, first: int, length: int) -> NDArray[np.int64]:
        """The frames of a timeline that starts at frame `first` and covers `length` frames of the file.

        Args:
            fps: timeline frames per second.
        Returns:
            (J,) ascending numbers of frames of the file, at least one. Of two equally near frames it is the
            earlier one.
        """
        after = first + length
        seconds = self.seconds[first:after] - self.seconds[first]
        end = (self.end if after == self.seconds.size else self.seconds[after]) - self.seconds[first]
        middles = (seconds[1:] + seconds[:-1]) / 2  # at a middle, both frames are equally near
        wanted = np.arange(num_timeline_frames(end, fps)) / fps
        return first + np.searchsorted(middles, wanted - TOLERANCE)


def num_timeline_frames(seconds: float, fps: float) -> int:
    """J for a video that lasts `seconds`: rounded, because containers round the times of frames."""
    return max(int((seconds + TOLERANCE) * fps + 0.5), 1)
