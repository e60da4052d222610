"""A video of a data set, or a segment of one."""

from __future__ import annotations

from dataclasses import dataclass

from everest.lists.labels import Label
from everest.system.storage import parse_location
from everest.video.source import Member, Video


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A video, or a segment of one, and its labels."""

    path: str  # absolute, or a URL; of a video in a shard, the path that it had
    member: Member | None = None  # the bytes of the video, if it is in a shard
    labels: tuple[Label, ...] = ()  # one per head; empty if there are none
    start: float | None = None  # seconds
    end: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None  # the first frame after the segment
    group: str | None = None  # the recording, animal or person that the video comes from

    @property
    def video(self) -> Video:
        """The file or part of a shard that the video is read from."""
        return self.member or parse_location(self.path)

    @property
    def source(self) -> str:
        """The group, else the path: samples of one source look alike, such as the segments of a file."""
        return self.path if self.group is None else self.group

    @property
    def video_id(self) -> str:
        """Identifies the sample in results."""
        if (self.start, self.end, self.start_frame, self.end_frame) == (None,) * 4:
            return self.path
        if self.start is None and self.end is None:
            return f"{self.path}#{self.start_frame or 0}-{self.end_frame or ''}"
        return f"{self.path}#{self.start or 0}s-{'' if self.end is None else f'{self.end}s'}"
