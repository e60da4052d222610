"""A video of a data set, or a segment of one; the samples of the rows of a list, with all problems."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

from everest.errors import DataError, shown
from everest.lists.header import GROUP_COLUMN
from everest.lists.labels import Label, LabelRules
from everest.lists.text import ListRow
from everest.system.storage import Location, RemotePath, join_location, parse_location
from everest.system.text import counted, is_unicode
from everest.video.folders import cause_of_missing
from everest.video.source import Member, Video

SHOWN: Final = 5  # problems that a message shows
_NUMBER: Final = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_SEGMENT: Final = re.compile(
    rf"(?P<path>.+)#(?:(?P<start>{_NUMBER})s-(?:(?P<end>{_NUMBER})s)?|(?P<first>\d+)-(?P<after>\d*))",
    re.DOTALL,
)

Number = TypeVar("Number", int, float)


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

    @classmethod
    def of_video_id(cls, name: str) -> Sample:
        """The sample with a `video_id`, without its labels; of a video in a shard without its bytes."""
        match = _SEGMENT.fullmatch(name)
        if match is None:
            return cls(path=name)
        start, end, start_frame, end_frame = match["start"], match["end"], match["first"], match["after"]
        return cls(
            path=match["path"],
            start=float(start) if start else None,
            end=float(end) if end else None,
            start_frame=int(start_frame) if start_frame else None,
            end_frame=int(end_frame) if end_frame else None,
        )

    @property
    def video_id(self) -> str:
        """Identifies the sample in results; `of_video_id` reads it."""
        if (self.start, self.end, self.start_frame, self.end_frame) == (None,) * 4:
            return self.path
        if self.start is None and self.end is None:
            return f"{self.path}#{self.start_frame or 0}-{self.end_frame or ''}"
        return f"{self.path}#{self.start or 0}s-{'' if self.end is None else f'{self.end}s'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSize:
    """The size of a list: only its groups are independent, because windows of a recording look alike."""

    samples: int  # videos or windows
    videos: int  # files that they are read from
    groups: int  # persons, animals or recordings; without names of groups, the videos
    are_windows: bool = False  # parts of videos

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> ListSize:
        return cls(
            samples=len(samples),
            videos=len({sample.path for sample in samples}),
            groups=len({sample.source for sample in samples}),
            are_windows=any(sample.video_id != sample.path for sample in samples),
        )

    @property
    def unit(self) -> str:
        return "window" if self.are_windows else "video"

    def __str__(self) -> str:
        """`989 windows of 4 videos`, `60 videos of 12 groups`, `60 videos`."""
        text = counted(self.samples, self.unit)
        if self.are_windows:
            text = f"{text} of {counted(self.videos, 'video')}"
        return text if self.groups >= self.videos else f"{text} of {counted(self.groups, 'group')}"


def samples_of_rows(
    rows: Sequence[ListRow], root: Location, rules: LabelRules | None
) -> tuple[dict[str, Sample], dict[str, str]]:
    """Reads the samples of a list, and collects the problems of its rows instead of raising them.

    Args:
        rules: the labels that are allowed; None ignores labels.
    Returns:
        Samples and problems, each by `ListRow.where`. A row with a wrong label has a problem, and a sample
        without labels; a row that is wrong otherwise has a problem only. All rows of a video, or of a
        segment, that has two classes have a problem.
    """
    samples, problems = {}, {}
    for row in rows:
        labels: tuple[Label, ...] = ()
        try:
            labels = rules.read(row) if rules else ()
        except ValueError as problem:
            problems[row.where] = str(problem)
        try:
            samples[row.where] = _sample_of(row, root, labels)
        except ValueError as problem:
            problems[row.where] = str(problem)
    return samples, _conflicts(rows, samples) | problems


def _conflicts(rows: Sequence[ListRow], samples: Mapping[str, Sample]) -> dict[str, str]:
    """The problem of each row of a single-label list whose video, or segment, has another class elsewhere."""
    by_video: dict[str, list[ListRow]] = defaultdict(list)
    for row in rows:
        sample = samples.get(row.where)
        if sample is not None and len(sample.labels) == 1 and isinstance(sample.labels[0], int):
            by_video[sample.video_id].append(row)
    problems = {}
    for video, of_video in by_video.items():
        for row in of_video:
            label = samples[row.where].labels
            other = next((each for each in of_video if samples[each.where].labels != label), None)
            if other is not None:
                own, another = (shown(each.values.get("label", "")) for each in (row, other))
                line = other.where.rpartition(":")[2]
                problems[row.where] = (
                    f"{video} has the class '{own}' here and '{another}' in line {line}; keep one of the rows"
                )
    return problems


def _sample_of(row: ListRow, root: Location, labels: tuple[Label, ...]) -> Sample:
    """Returns the sample of a row; raises ValueError with the problem."""
    if "path" not in row.values:
        raise ValueError("no path")
    start, end = (_number(row, name, float) for name in ("start", "end"))
    start_frame, end_frame = (_number(row, name, int) for name in ("start_frame", "end_frame"))
    if (start, end) != (None, None) and (start_frame, end_frame) != (None, None):
        raise ValueError("a segment either in seconds (start, end) or in frames (start_frame, end_frame)")
    for first, last in ((start, end), (start_frame, end_frame)):
        if last is not None and last <= (first or 0):
            raise ValueError(f"the segment ends at {last} and starts at {first or 0}")
    return Sample(
        path=str(join_location(root, row.values["path"]).absolute()),
        member=row.member,
        labels=labels,
        start=start,
        end=end,
        start_frame=start_frame,
        end_frame=end_frame,
        group=row.values.get(GROUP_COLUMN),
    )


def _number(row: ListRow, name: str, kind: type[Number]) -> Number | None:
    if name not in row.values:
        return None
    text = row.values[name]
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"{name} '{text}' is not a number") from None
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} {text} is not a time in a video")
    return number


def samples_of_list(
    file: Location, rows: Sequence[ListRow], root: Location, rules: LabelRules | None, *, may_miss: bool
) -> tuple[Sample, ...]:
    """Read the samples of a list; raises DataError with the first wrong rows, or the first missing videos."""
    samples, problems = samples_of_rows(rows, root, rules)
    refuse([f"{where}: {problem}" for where, problem in problems.items()], "lines are wrong")
    videos = {sample.path: sample.video for sample in samples.values()}
    # The shards that an index names are known to be there.
    files = {path: video for path, video in videos.items() if not isinstance(video, Member)}
    missing = _missing(files, file)
    if files and len(missing) == len(files):
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; the paths in {file} are relative to it; set it by --data DIR"
            )
        first = next(iter(files))
        if cause := cause_of_missing(files[first]):
            raise DataError(f"{file}: none of its {len(files)} videos exists, first {first}{cause}")
        raise DataError(
            f"{file}: none of its {len(files)} videos exists, first {first}{_next_to(file, rows[0], root)}; "
            f"paths are relative to {root}; name their folder by --data DIR"
            + ("" if is_unicode(first) else "; the list is not in UTF-8")
        )
    if not may_miss:
        absent = [row for row in rows if samples[row.where].path in missing]
        problems = [f"{row.where}: {missing[samples[row.where].path]}" for row in absent]
        for place, row in enumerate(absent[:SHOWN]):
            problems[place] += cause_of_missing(files[samples[row.where].path]) or _next_to(file, row, root)
        refuse(problems, "videos are missing")
    return tuple(samples.values())


def _next_to(file: Location, row: ListRow, root: Location) -> str:
    """Whether a missing video is next to its list, if its path was taken relative to another folder."""
    path, folder = row.values["path"], file.absolute().parent
    video = join_location(folder, path)
    if folder == root.absolute() or video == join_location(root, path):
        return ""
    with suppress(OSError):
        if video.exists():
            return f", but there is {video}: paths are not relative to the list, but to --data ({root})"
    return f", nor next to the list, {video}"


def _missing(videos: Mapping[str, Location], file: Location) -> dict[str, str]:
    """The paths of a list without a video, and why."""
    missing = {}

    @cache  # lists each folder of a storage once
    def children(folder: RemotePath) -> set[RemotePath]:
        try:
            return set(folder.iterdir())
        except FileNotFoundError:
            return set()

    for path, video in sorted(videos.items()):
        try:
            exists = video in children(video.parent) if isinstance(video, RemotePath) else video.exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            missing[path] = f"cannot look for {path}: {error.strerror}"
        else:
            if not exists:
                encoding = "" if is_unicode(path) else f"; {file} is not in UTF-8, save it in that encoding"
                missing[path] = f"no file {path}{encoding}"
    return missing


def refuse(problems: Sequence[str], summary: str) -> None:
    """Raise DataError if there are problems: the first of them, and their number if there are more."""
    if len(problems) > SHOWN:
        problems = [*problems[:SHOWN], f"… {len(problems)} {summary}"]
    if problems:
        raise DataError("\n".join(problems))
