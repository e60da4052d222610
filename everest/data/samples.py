"""Which videos of a list are not there.

The videos of a data set and their labels, from a list or from folders. All is checked before a run begins.

A list is described in everest.data.list_files, the index of shards, which is a list too, in
everest.data.shards. A folder has a subfolder for every class; without labels, any folder of videos will do. A
folder of pictures counts as a video.

What a user names at the command line: videos, folders of videos, lists of videos or segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from everest.data.list_text import (
    ListRow,
    ReadLabels,
    columns_of,
    label_of,
    labels_of,
    names_used,
    no_labels,
    read_rows,
)
from everest.data.shards import find_index, read_index
from everest.errors import DataError, RecipeError, did_you_mean
from everest.system.storage import Location, RemotePath, join_location, parse_location
from everest.video.folders import as_data_error, subfolders, videos_by_subfolder, videos_under
from everest.video.source import Member, Video


def absences(paths: Sequence[str]) -> dict[str, str]:
    """Why videos are not there, of those that are not. Of a storage each folder is listed once."""
    missing: dict[str, str] = {}
    listed: dict[RemotePath, set[RemotePath]] = {}
    for path in paths:
        video = parse_location(path)
        try:
            if isinstance(video, RemotePath):
                there = video in _listed(video.parent, listed)
            else:
                there = video.exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            missing[path] = f"cannot look for {path}: {error.strerror}"
        else:
            if not there:
                missing[path] = f"no file {path}"
    return missing


def _listed(folder: RemotePath, listed: dict[RemotePath, set[RemotePath]]) -> set[RemotePath]:
    """What a folder of a storage holds, asked once."""
    if folder not in listed:
        try:
            listed[folder] = set(folder.iterdir())
        except FileNotFoundError:
            listed[folder] = set()
    return listed[folder]


SHOWN: Final = 5  # problems that a message names

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A video, or a segment of one, and its labels."""

    path: str  # absolute, or a URL; of a video in a shard the one that it had
    member: Member | None = None  # where it is in a shard
    labels: tuple[int, ...] = ()  # one a head; empty where there is none
    start: float | None = None  # seconds
    end: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None  # the first that does not belong to it

    @property
    def video(self) -> Video:
        """What it is read from."""
        return self.member or parse_location(self.path)

    @property
    def video_id(self) -> str:
        """Tells samples apart in results."""
        if (self.start, self.end, self.start_frame, self.end_frame) == (None,) * 4:
            return self.path
        if self.start is None and self.end is None:
            return f"{self.path}#{self.start_frame or 0}-{self.end_frame or ''}"
        return f"{self.path}#{self.start or 0}s-{'' if self.end is None else f'{self.end}s'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleList:
    """What a list or a folder holds."""

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...] | None  # None: nobody named the labels


def read_samples(
    source: Location,
    *,
    root: Location,
    classes: Sequence[str] | None,
    num_classes: int | None,
    heads: Mapping[str, int] | None,
    labelled: bool,
    names_classes: bool = True,
    may_miss: bool = False,
) -> SampleList:
    """Read and check a list or a folder.

    Args:
        root: what the paths of a list are relative to.
        classes: names in the order of their labels; None takes those found, sorted.
        num_classes: labels have to be below; None takes the number of names, if there are any.
        heads: classes of every head, where a sample has several labels (columns `label.NAME`).
        labelled: False reads no labels (pre-training).
        names_classes: whether names that are found may become the classes. Only the training set's may:
            sorted names of a test set need not be in the order in which the head was trained.
        may_miss: leave a video that is not there to whoever reads it, if others are; without labels only.
    Raises:
        DataError: with a line for each of the first problems, and how many there are.
    """
    with as_data_error(source):
        if not source.exists():
            raise DataError(f"{source}: no such list or folder; set data.root, by --data DIR")
        rows = _rows(source)
    if not labelled:
        samples = _of_rows(rows, source, root, no_labels, may_miss) if rows else _of_any_folder(source)
        return SampleList(samples=samples, class_names=None)
    if heads:
        if not rows:
            raise DataError(
                f"{source}: data.heads needs a list with the columns {', '.join(columns_of(heads))}"
            )
        return SampleList(samples=_of_rows(rows, source, root, labels_of(heads)), class_names=None)
    names = tuple(classes or _names_found(source, rows, may_name=names_classes))
    if names and num_classes not in (None, len(names)):
        raise DataError(
            f"{source}: data.num_classes is {num_classes}, there are {len(names)} ({_first(names)})"
        )
    if rows:
        samples = _of_rows(rows, source, root, label_of(names, num_classes or len(names)))
    else:
        samples = _of_class_folders(source, names, may_be_empty=bool(classes))
    return SampleList(samples=samples, class_names=names or None)


def _rows(source: Location) -> list[ListRow] | None:
    """The rows of a list or of an index; None for a folder of videos."""
    index = find_index(source)
    if index is not None:
        return read_index(index)
    return read_rows(source) if source.is_file() else None


def _names_found(source: Location, rows: Sequence[ListRow] | None, *, may_name: bool) -> list[str]:
    """The names of classes that a list or a folder uses; refused where they `may_name` no class."""
    names = names_used(rows) if rows else subfolders(source)
    if names and not may_name:
        raise DataError(
            f"{source}: its labels are names ({_first(names)}), and the checkpoint or training list has no "
            "class names; set data.classes or use numbers"
        )
    return names


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _of_rows(
    rows: Sequence[ListRow], file: Location, root: Location, read_labels: ReadLabels, may_miss: bool = False
) -> tuple[Sample, ...]:
    samples, problems = [], []
    for row in rows:
        try:
            samples.append(sample_of(row, root, read_labels))
        except ValueError as problem:
            problems.append(f"{row.place}: {problem}")
    _refuse(problems, "lines are wrong")
    _check_files(file, root, samples, rows, may_miss)
    return tuple(samples)


def sample_of(row: ListRow, root: Location, read_labels: ReadLabels) -> Sample:
    """The sample of a row; ValueError with what is wrong with it."""
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
        labels=read_labels(row),
        start=start,
        end=end,
        start_frame=start_frame,
        end_frame=end_frame,
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


def _check_files(
    file: Location, root: Location, samples: Sequence[Sample], rows: Sequence[ListRow], may_miss: bool
) -> None:
    paths = {sample.path for sample in samples if sample.member is None}  # of shards their index tells
    missing = absences(sorted(paths))
    if paths and len(missing) == len(paths):
        raise DataError(
            f"{file}: none of its {len(paths)} videos exists, first {samples[0].path}; "
            f"paths are relative to data.root, which is {root}"
        )
    if may_miss:
        return
    problems = [
        f"{row.place}: {missing[sample.path]}"
        for sample, row in zip(samples, rows, strict=True)
        if sample.path in missing
    ]
    _refuse(problems, "videos are missing")


def _refuse(problems: Sequence[str], what: str) -> None:
    """Raise if there are problems: the first ones, and the count when there are more."""
    if len(problems) > SHOWN:
        problems = [*problems[:SHOWN], f"… {len(problems)} {what}"]
    if problems:
        raise DataError("\n".join(problems))


def _of_class_folders(folder: Location, names: Sequence[str], *, may_be_empty: bool) -> tuple[Sample, ...]:
    """The videos of the subfolders. One without any is a mistake where it would make a class of itself."""
    found = videos_by_subfolder(folder)
    if not found:
        raise DataError(f"{folder}: no subfolders; a folder of labelled videos has one for every class")
    unknown = [
        f"{folder / name}: unknown class{did_you_mean(name, names)}" for name in found if name not in names
    ]
    _refuse(unknown, "classes are unknown")
    if not any(found.values()):
        raise DataError(f"{folder}: no videos in its {len(found)} subfolders")
    empty = [
        f"{folder / name}: no videos in this class folder; remove it, or name the classes in data.classes"
        for name, videos in found.items()
        if not videos and not may_be_empty
    ]
    _refuse(empty, "class folders are empty")
    return tuple(
        Sample(path=str(video.absolute()), labels=(label,))
        for label, name in enumerate(names)
        for video in found.get(name, ())
    )


def _of_any_folder(folder: Location) -> tuple[Sample, ...]:
    samples = tuple(Sample(path=str(video.absolute())) for video in videos_under(folder))
    if not samples:
        raise DataError(f"{folder}: no videos in it")
    return samples


LISTS: Final = frozenset({".csv", ".tsv", ".txt"})


def named_videos(paths: Sequence[Path]) -> list[Path]:
    """Files, and all videos below folders.

    Raises:
        DataError: nothing at a path, or a folder without a video.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such video or folder")
    return [video for path in paths for video in _videos(path)]


def refuse_same_stems(videos: Sequence[Path]) -> None:
    """Raise RecipeError for two videos whose pictures, named by the stem, would be one file."""
    first: dict[str, Path] = {}
    for video in videos:
        other = first.setdefault(video.stem, video)
        if other is not video:
            raise RecipeError(
                f"{other} and {video}: their pictures would have one name; "
                "give them one after the other, with a folder for each"
            )


def named_samples(paths: Sequence[Path], *, root: Path | None) -> list[Sample]:
    """As `named_videos`, and lists of videos or of segments; what is not there is left to whoever reads it.

    Args:
        root: where the paths of the lists begin; None: in the folder of each list.
    Raises:
        DataError: a list that cannot be used, or a folder without a video.
        RecipeError: a root, and no list.
    """
    if root is not None and not any(_is_list(path) for path in paths):
        raise RecipeError(f"--data {root}: says where the paths of a list begin, and no list is named")
    return [sample for path in paths for sample in _samples(path, root)]


def _samples(path: Path, root: Path | None) -> Sequence[Sample]:
    if not _is_list(path):
        return [Sample(path=str(video)) for video in _videos(path)]
    listed = read_samples(
        path,
        root=root or path.parent,
        classes=None,
        num_classes=None,
        heads=None,
        labelled=False,
        may_miss=True,
    )
    return listed.samples


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LISTS and not path.is_dir()


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    below = list(videos_under(path))
    if not below:
        raise DataError(f"{path}: no videos below this folder")
    return below
