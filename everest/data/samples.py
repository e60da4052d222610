"""The videos of a data set and their labels, from a list or from folders, checked before a run starts.

The text of a list is described in everest.data.list_text; the index of shards, which is a list too, in
everest.data.shards. A folder has a subfolder for every class; without labels, any folder of videos will do. A
folder of images counts as a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

from everest.config.heads import MULTI_LABEL, Heads, Task
from everest.data.labels import JOINED_BY, SEPARATED, SEVERAL, Label, LabelRules, columns_of, names_used
from everest.data.list_header import GROUP_COLUMN
from everest.data.list_text import ListRow, read_rows, shown
from everest.data.shards import find_index, read_index
from everest.errors import DataError, did_you_mean
from everest.system.names import is_unicode
from everest.system.storage import Location, RemotePath, join_location, parse_location
from everest.video.folders import as_data_error, subfolders, videos_by_subfolder, videos_under
from everest.video.source import Member, Video

SHOWN: Final = 5  # problems, or names, that a message shows

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

    @property
    def video_id(self) -> str:
        """Identifies the sample in results."""
        if (self.start, self.end, self.start_frame, self.end_frame) == (None,) * 4:
            return self.path
        if self.start is None and self.end is None:
            return f"{self.path}#{self.start_frame or 0}-{self.end_frame or ''}"
        return f"{self.path}#{self.start or 0}s-{'' if self.end is None else f'{self.end}s'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleList:
    """The samples of a list or a folder."""

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...] | None  # None: only the indices of the classes are known
    notice: str | None = None  # about the columns of a sheet: which are read, and which are ignored


def read_samples(
    source: Location,
    *,
    root: Location,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    task: Task = "single-label",
    heads: Heads = (),
    labeled: bool = True,
    names_classes: bool = True,
    may_miss: bool = False,
    class_column: str | None = None,
) -> SampleList:
    """Reads and checks a list or a folder.

    Args:
        root: the folder that paths in a list are relative to.
        classes: names in the order of their indices; None: the names used in the source, sorted.
        num_classes: labels must be below; None: below the number of names, if there are any.
        task: what a label is, if a sample has one.
        heads: if a sample has several labels (columns `label.NAME`).
        labeled: False ignores labels (pre-training).
        names_classes: whether names used in the source may define the classes. This holds for the training
            set only: the sorted names of a test set need not be in the order that the head was trained with.
        may_miss: ignore missing videos, unless all of them are missing.
        class_column: the column of classes in a sheet; None finds it by its name.
    Raises:
        DataError: names the first problems, one per line, and their number.
        RecipeError: the list has no column `class_column`.
    """
    with as_data_error(source):
        if not source.exists():
            raise DataError(f"{source}: no such list or folder; set data.root, by --data DIR")
        index = find_index(source)
        if index:
            rows = read_index(index)
        else:
            rows = read_rows(source, class_column=class_column) if source.is_file() else None
    header = rows[0].header if rows else None
    if labeled and header and header.unassigned and not header.has_classes:
        raise header.no_classes(source)
    names: tuple[str, ...] = ()
    if heads and labeled and not rows:
        raise DataError(f"{source}: data.heads needs a list with the columns {_columns(heads)}")
    if labeled and task != "single-label" and not rows:
        raise DataError(f"{source}: data.task {task} needs a list; a class folder gives one class to a video")
    if labeled and not heads and task != "regression":
        names = tuple(classes or (names_used(rows, task) if rows else subfolders(source)))
        if names and not classes and not names_classes:
            raise DataError(
                f"{source}: its labels are names ({_first(names)}), and the checkpoint or training list has "
                "no class names; set data.classes or use numbers"
            )
        if names and num_classes not in (None, len(names)):
            raise DataError(
                f"{source}: data.num_classes is {num_classes}, there are {len(names)} ({_first(names)})"
            )
    if task == MULTI_LABEL and (joined := [name for name in names if JOINED_BY in name]):
        raise DataError(
            f"{source}: the class '{joined[0]}' has a '{JOINED_BY}' in its name, which joins classes; "
            "rename it"
        )
    if rows:
        rules = None
        if labeled:
            rules = LabelRules(names=names, num_classes=num_classes, task=task, heads=heads)
        if labeled:
            _refuse_empty_columns(source, rows, heads)
        samples = _of_list(source, rows, root, rules, may_miss=may_miss)
    elif labeled:
        samples = _of_class_folders(source, names, may_be_empty=bool(classes))
    else:
        samples = tuple(Sample(path=str(video.absolute())) for video in videos_under(source))
        if not samples:
            raise DataError(f"{source}: no videos in it")
    notices = [header.notice() if header else None]
    if not classes and task == "single-label" and any(JOINED_BY in name for name in names):
        notices.append(f"{source}: a label with '{JOINED_BY}' is read as one class; {SEVERAL}")
    notice = "\n".join(text for text in notices if text is not None) or None
    return SampleList(samples=samples, class_names=names or None, notice=notice)


def _refuse_empty_columns(source: Location, rows: Sequence[ListRow], heads: Heads) -> None:
    """Raise DataError for labels that all rows lack, as multi-label cells may be empty."""
    if not heads and not any("label" in row.values for row in rows):
        header = rows[0].header
        is_column = header is not None and "label" in header.names
        reason = "the column label is empty in all rows" if is_column else SEPARATED
        reason += ", not by ';'" if ";" in rows[0].text else ""
        raise DataError(f"{rows[0].where}: no label in {shown(rows[0].text)}; {reason}")
    for head in heads or ():
        (column,) = columns_of([head.name])
        if head.task == MULTI_LABEL and not any(column in row.values for row in rows):
            raise DataError(f"{source}: no video has a class in the column {column}; check the list")


def _columns(heads: Heads) -> str:
    return ", ".join(columns_of(head.name for head in heads))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def samples_of_rows(
    rows: Sequence[ListRow], root: Location, rules: LabelRules | None
) -> tuple[dict[str, Sample], dict[str, str]]:
    """Reads the samples of a list, and collects the problems of its rows instead of raising them.

    Args:
        rules: the labels that are allowed; None ignores labels.
    Returns:
        Samples and problems, each by `ListRow.where`. A row with a wrong label has a problem, and a sample
        without labels; a row that is wrong otherwise has a problem only.
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
    return samples, problems


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


def _of_list(
    file: Location, rows: Sequence[ListRow], root: Location, rules: LabelRules | None, *, may_miss: bool
) -> tuple[Sample, ...]:
    samples, problems = samples_of_rows(rows, root, rules)
    _refuse([f"{where}: {problem}" for where, problem in problems.items()], "lines are wrong")
    paths = {sample.path for sample in samples.values() if sample.member is None}  # shards: in their index
    missing: dict[str, str] = {}  # path and reason

    @cache  # lists each folder of a storage once
    def children(folder: RemotePath) -> set[RemotePath]:
        try:
            return set(folder.iterdir())
        except FileNotFoundError:
            return set()

    for path in sorted(paths):
        video = parse_location(path)
        try:
            exists = video in children(video.parent) if isinstance(video, RemotePath) else video.exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            missing[path] = f"cannot look for {path}: {error.strerror}"
        else:
            if not exists:
                encoding = "" if is_unicode(path) else f"; {file} is not in UTF-8, save it in that encoding"
                missing[path] = f"no file {path}{encoding}"
    if paths and len(missing) == len(paths):
        first = next(iter(samples.values())).path
        raise DataError(
            f"{file}: none of its {len(paths)} videos exists, first {first}; "
            f"paths are relative to {root}; name their folder by --data DIR"
            + ("" if is_unicode(first) else "; the list is not in UTF-8")
        )
    if not may_miss:
        absent = {where: sample.path for where, sample in samples.items() if sample.path in missing}
        _refuse([f"{where}: {missing[path]}" for where, path in absent.items()], "videos are missing")
    return tuple(samples.values())


def _refuse(problems: Sequence[str], summary: str) -> None:
    """Raise DataError if there are problems: the first of them, and their number if there are more."""
    if len(problems) > SHOWN:
        problems = [*problems[:SHOWN], f"… {len(problems)} {summary}"]
    if problems:
        raise DataError("\n".join(problems))


def _of_class_folders(folder: Location, names: Sequence[str], *, may_be_empty: bool) -> tuple[Sample, ...]:
    """Returns the videos of the subfolders; an empty one is refused if it would define a class."""
    by_class = videos_by_subfolder(folder)
    if not by_class:
        raise DataError(f"{folder}: no subfolders; a folder of labeled videos has one for every class")
    unknown = [name for name in by_class if name not in names]
    lines = [f"{folder / name}: unknown class{did_you_mean(name, names)}" for name in unknown]
    _refuse(lines, "classes are unknown")
    if not any(by_class.values()):
        raise DataError(f"{folder}: no videos in its {len(by_class)} subfolders")
    fix = "no videos in this class folder; remove it, or name the classes in data.classes"
    empty = [f"{folder / name}: {fix}" for name, videos in by_class.items() if not videos]
    _refuse([] if may_be_empty else empty, "class folders are empty")
    return tuple(
        Sample(path=str(video.absolute()), labels=(label,))
        for label, name in enumerate(names)
        for video in by_class.get(name, ())
    )
