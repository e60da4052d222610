"""Samples: videos of a data set, or segments of them, with their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, TypeVar

import numpy as np

from everest.lists.columns import GROUP_COLUMN, SEGMENT_COLUMNS, ListRow
from everest.lists.labels import Label
from everest.system.storage import Location, join_location, parse_location
from everest.system.text import plural
from everest.video.source import ShardMember, Video

Item = TypeVar("Item")

_NUMBER: Final = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_SEGMENT: Final = re.compile(
    rf"(?P<path>.+)#(?:(?P<start>{_NUMBER})s-(?:(?P<end>{_NUMBER})s)?|(?P<start_frame>\d+)-"
    r"(?P<end_frame>\d*))(?P<whole>#*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A video, or a segment of one, and its labels."""

    path: str  # absolute path or URL; for a video in a shard, its original path
    member: ShardMember | None = None  # the bytes of the video, if it is in a shard
    labels: tuple[Label, ...] = ()  # one label per head; empty if there are none
    start: float | None = None  # start of the segment in seconds
    end: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None  # the first frame after the segment
    group: str | None = None  # the recording, animal or person that the video comes from

    @property
    def video(self) -> Video:
        """The file or part of a shard that the video is read from."""
        return self.member or parse_location(self.path)

    @property
    def segment(self) -> tuple[float | None, float | None, int | None, int | None]:
        """Start and end in seconds, then in frames; at most one pair is set."""
        return self.start, self.end, self.start_frame, self.end_frame

    @property
    def is_segment(self) -> bool:
        """Whether the sample is a part of its video."""
        return self.segment != (None,) * 4

    def with_seconds(self, start: float, end: float) -> Sample:
        """The segment of the same video between two times."""
        return replace(self, start=start, end=end, start_frame=None, end_frame=None)

    @property
    def group_or_path(self) -> str:
        """The group, else the path: samples of one source, such as segments of a file, look alike."""
        return self.path if self.group is None else self.group

    @classmethod
    def from_video_id(cls, video_id: str) -> Sample:
        """The sample with a `video_id`, without labels and without the place in a shard."""
        match = _SEGMENT.fullmatch(video_id)
        if match is None or match["whole"]:
            return cls(path=video_id if match is None else video_id[:-1])
        segment: dict[str, Any] = {name: _time(name, match[name]) for name in SEGMENT_COLUMNS if match[name]}
        return cls(path=match["path"], **segment)

    @property
    def video_id(self) -> str:
        """Identifies the sample in results; `from_video_id` reads it.

        It ends in `#` for a whole video whose path ends like a segment: a folder of images `take#1-20`.
        """
        if not self.is_segment:
            return f"{self.path}#" if _SEGMENT.fullmatch(self.path) else self.path
        if self.start is None and self.end is None:
            return f"{self.path}#{self.start_frame or 0}-{self.end_frame or ''}"
        return f"{self.path}#{self.start or 0}s-{'' if self.end is None else f'{self.end}s'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSize:
    """The size of a list. Only its groups are independent: windows of a recording look alike."""

    num_samples: int  # videos or windows
    num_videos: int  # files that the samples are read from
    num_groups: int  # people, animals or recordings; without names of groups, the videos
    are_windows: bool = False  # whether the samples are parts of videos

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> ListSize:
        return cls(
            num_samples=len(samples),
            num_videos=len({sample.path for sample in samples}),
            num_groups=len({sample.group_or_path for sample in samples}),
            are_windows=any(sample.is_segment for sample in samples),
        )

    @property
    def noun(self) -> str:
        return "window" if self.are_windows else "video"

    def progress_event(self, num_done: int) -> dict[str, Any]:
        """The event that `num_done` samples are done (everest.system.events)."""
        return {"event": self.noun, "done": num_done, f"{self.noun}s": self.num_samples}

    def __str__(self) -> str:
        """`989 windows of 4 videos`, `60 videos of 12 groups`, `60 videos`."""
        text = plural(self.num_samples, self.noun)
        if self.are_windows:
            text = f"{text} of {plural(self.num_videos, 'video')}"
        return text if self.num_groups >= self.num_videos else f"{text} of {plural(self.num_groups, 'group')}"


def choose_evenly(items: Sequence[Item], max_items: int) -> tuple[Item, ...]:
    """At most `max_items` items at equal distances, in their order."""
    positions = np.linspace(0, len(items) - 1, min(max_items, len(items))).round().astype(int)
    return tuple(items[position] for position in positions)


def read_sample(row: ListRow, root: Location, labels: tuple[Label, ...]) -> Sample:
    """The sample of a row of a list; raises ValueError with the problem."""
    if "path" not in row.values:
        raise ValueError("no path")
    segment: dict[str, Any] = {}
    for name in SEGMENT_COLUMNS:
        if name in row.values:
            with suppress(ValueError):
                segment[name] = _time(name, row.values[name])
            if not 0 <= segment.get(name, -1) < inf:
                raise ValueError(f"{name} '{row.values[name]}' is not a time in a video, a number from 0 on")
    if {"start", "end"} & segment.keys() and {"start_frame", "end_frame"} & segment.keys():
        raise ValueError("a segment either in seconds (start, end) or in frames (start_frame, end_frame)")
    for start, end in (("start", "end"), ("start_frame", "end_frame")):
        first = segment.get(start) or 0
        if end in segment and segment[end] <= first:
            raise ValueError(f"the segment ends at {segment[end]} and starts at {first}")
    path = str(join_location(root, row.values["path"]).absolute())
    group = row.values.get(GROUP_COLUMN)
    return Sample(path=path, member=row.member, labels=labels, group=group, **segment)


def _time(column: str, text: str) -> float:
    return int(text) if column.endswith("_frame") else float(text)
