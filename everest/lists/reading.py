"""The videos of a data set and their labels, from a list or from folders, checked before a run starts.

The rows of a list are described in everest.lists.columns. A folder has a subfolder for every class; without
labels, any folder of videos will do. A folder of images counts as a video.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from everest.config.heads import MULTI_LABEL, Head, Heads, Task
from everest.errors import DataError, RecipeError, did_you_mean, join_first, one_per_line, shorten
from everest.lists.columns import (
    BY_NAME,
    HEAD_PREFIX,
    ChosenColumns,
    ListRow,
    read_list,
    read_rows,
    refuse_shards,
)
from everest.lists.labels import (
    JOINED_BY,
    NEEDS_MULTI_LABEL,
    LabelRules,
    class_indices,
    infer_task,
    is_integer,
    is_number_like,
    label_column,
    task_notice,
)
from everest.lists.sample import Sample, read_sample
from everest.system.storage import Location, RemotePath, parse_location
from everest.video.folders import (
    as_data_error,
    class_folder_notices,
    split_folders,
    videos_by_subfolder,
    videos_under,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleList:
    """The samples of a list or a folder."""

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...] | None  # None: only the indices of the classes are known
    heads: Heads = ()  # one head per label of a sample; a single head has no name
    notices: tuple[str, ...] = ()  # lines for the user, such as the ignored columns or the task of the labels

    @property
    def task(self) -> Task:
        """The task of the first label."""
        return self.heads[0].task if self.heads else "single-label"

    @property
    def by_class(self) -> dict[str, list[Sample]]:
        """The samples of each nonempty class of the first label, in the order of the classes."""
        by_index: dict[int, list[Sample]] = {}
        for sample in self.samples:
            for index in class_indices(sample.labels[0]) if sample.labels else ():
                by_index.setdefault(index, []).append(sample)
        names = self.class_names
        return {names[index] if names else str(index): by_index[index] for index in sorted(by_index)}


def read_samples(
    source: Location,
    *,
    root: Location,
    class_names: Sequence[str] | None = None,
    heads: Heads = (),
    is_fixed: bool = False,
    skip_missing: bool = False,
) -> SampleList:
    """Read and check the videos of a list or a folder, and their labels.

    Args:
        root: the folder that paths in a list are relative to.
        class_names: names in the order of their indices; None: the names used in the source, sorted.
        heads: one per column `label.NAME`, or a single head without a name; `outputs` of 0 allow any number
            of classes; empty: one class per video.
        is_fixed: whether a trained model fixes the classes, so that names used in the source may not define
            them: the sorted names of a test set need not be in the order that the head was trained with.
        skip_missing: ignore missing videos, unless all of them are missing.
    Raises:
        DataError: wrong lines, unknown classes or missing videos; the message names the first ones.
    """
    heads = heads or (Head(outputs=0),)
    rules = LabelRules(heads=heads, class_names=tuple(class_names or ()), is_fixed=is_fixed)
    return _make_sample_list(source, read_list(source), root, rules, skip_missing=skip_missing)


def read_unlabeled(source: Location, *, root: Location, skip_missing: bool = False) -> SampleList:
    """Read and check the videos of a list or a folder without their labels; see `read_samples`."""
    return _make_sample_list(source, read_list(source), root, None, skip_missing=skip_missing)


def read_labeled(
    source: Path,
    *,
    root: Path,
    class_names: Sequence[str] | None = None,
    task: Task | None = None,
    heads: Heads = (),
    columns: ChosenColumns = BY_NAME,
    skip_missing: bool = False,
) -> SampleList:
    """Read a list or a folder and infer its labels and task, as `everest prepare` does.

    Args:
        class_names, skip_missing: see `read_samples`.
        task: None infers it from the labels.
        heads: heads of another list, which also fix the classes; empty infers them from columns `label.NAME`.
    Raises:
        DataError, RecipeError: as `read_samples`; an option that has no effect on this source.
    """
    is_fixed = bool(heads)
    with as_data_error(source):
        if not source.exists():
            raise DataError(f"{source}: no such list or folder")
        refuse_shards(source)
        rows = read_rows(source, columns) if source.is_file() else None  # None: a folder of videos
    if rows is None:
        if columns:
            raise RecipeError(f"{source}: a folder, which has no columns; leave out the options for columns")
        refuse_split_folders(source)
        has_labels = any(videos_by_subfolder(source).values())
        label_task: Task = task or "single-label"
    else:
        has_labels = rows[0].header.has_classes if rows[0].header else "label" in rows[0].values
        label_task = task or infer_task(rows, names=class_names or ())
        heads = heads or _heads_of_columns(source, rows, task=task, class_names=class_names)
    heads = heads or (Head(task=label_task, outputs=0),)
    rules = LabelRules(heads=heads, class_names=tuple(class_names or ()), is_fixed=is_fixed)
    data = _make_sample_list(source, rows, root, rules if has_labels else None, skip_missing=skip_missing)
    notices = [] if task or heads[0].name else [task_notice(source, label_task)]
    if rows and rows[0].header and (problem := rows[0].header.missing_classes_problem(source)):
        notices.append(f"{problem}; read without labels")
    return replace(data, notices=(*data.notices, *filter(None, notices)))


def _heads_of_columns(
    source: Path, rows: Sequence[ListRow], *, task: Task | None, class_names: Sequence[str] | None
) -> Heads:
    """A head per column `label.NAME`, for any number of classes; refuses options that have no effect."""
    columns = dict.fromkeys(name for row in rows for name in row.values if name.startswith(HEAD_PREFIX))
    if columns and any("label" in row.values for row in rows):
        raise DataError(f"{source}: has columns label and label.NAME; rename label to label.NAME, too")
    if (columns and task is not None) or (class_names is not None and (columns or task == "regression")):
        option = "--task" if columns and task is not None else "--classes"
        labels_text = "columns label.NAME" if columns else "numbers"
        raise RecipeError(f"{option}: has no effect on labels in {labels_text}, as in {source}; leave it out")
    return tuple(
        Head(name=column.removeprefix(HEAD_PREFIX), task=infer_task(rows, column=column), outputs=0)
        for column in columns
    )


def _make_sample_list(
    source: Location,
    rows: Sequence[ListRow] | None,
    root: Location,
    rules: LabelRules | None,
    *,
    skip_missing: bool,
) -> SampleList:
    """The samples of a list's rows, or of a folder if `rows` is None; without rules, they have no labels."""
    notices: list[str | None] = []
    if rows is not None:
        rules = rules and _complete_rules(source, rows, rules)
        samples = _samples_of_list(source, rows, root, rules, skip_missing=skip_missing)
        notices.append(rows[0].header and rows[0].header.notice())
    elif rules is not None:
        samples, rules = _samples_of_class_folders(source, rules)
        notices += class_folder_notices(source)
    else:
        samples = tuple(Sample(path=str(video.absolute())) for video in videos_under(source))
        if not samples:
            raise DataError(f"{source}: contains no videos; name a list, or another folder")
    heads, names = (rules.heads, rules.class_names) if rules else ((), ())
    if heads and heads[0].task == "single-label" and any(JOINED_BY in name for name in names):
        notices.append(f"{source}: a label with '{JOINED_BY}' is read as one class; {NEEDS_MULTI_LABEL}")
    lines = tuple(filter(None, notices))
    return SampleList(samples=samples, class_names=names or None, heads=heads, notices=lines)


def _complete_rules(source: Location, rows: Sequence[ListRow], rules: LabelRules) -> LabelRules:
    """Add the class names to the rules; refuses a list without the labels that the rules need."""
    header = rows[0].header
    columns = list(header.columns.values() if header else rows[0].values)
    absent = [column for head in rules.heads if head.name and (column := label_column(head)) not in columns]
    if absent and rows[0].member is None:  # the index of shards leaves out empty columns
        raise DataError(
            f"{source}: the list has no column {', '.join(absent)}, which data.heads names; its columns are "
            f"{', '.join(columns)}"
        )
    if header and (problem := header.missing_classes_problem(source)):
        raise DataError(problem)
    first, names = rules.heads[0], rules.class_names
    if first.name or first.task == "regression":  # named heads have no class names
        names = ()
    elif not names:  # the names that the list uses, unless its labels are numbers
        used = {row.values["label"] for row in rows if "label" in row.values}
        if first.task == MULTI_LABEL:
            used = {part.strip() for label in used for part in label.split(JOINED_BY)} - {""}
        if not any(map(is_integer, used)):
            names = tuple(sorted(label for label in used if not is_number_like(label)))
    rules = _with_class_names(source, names, rules)
    # A list on which a model is not trained may have no video with a class.
    for head in rules.heads:
        is_empty = not any(label_column(head) in row.values for row in rows)
        if head.task == MULTI_LABEL and is_empty and not rules.is_fixed:
            raise DataError(f"{source}: no video has a class in the column {label_column(head)}; fill it in")
    return rules


def _samples_of_class_folders(folder: Location, rules: LabelRules) -> tuple[tuple[Sample, ...], LabelRules]:
    """The videos of the class folders, and the rules with the class names."""
    head = rules.heads[0]
    if head.name or head.task != "single-label":
        raise DataError(
            f"{folder}: data.heads, or data.task {head.task}, needs a list; a class folder gives one class "
            "to a video"
        )
    by_class = videos_by_subfolder(folder)
    class_names = rules.class_names
    rules = _with_class_names(folder, class_names or tuple(by_class), rules)
    if not any(by_class.values()):
        contents = f"videos in its {len(by_class)} subfolders" if by_class else "subfolders"
        raise DataError(f"{folder}: no {contents}; a folder of labeled videos has one for every class")
    problems = []
    for name, videos in by_class.items():
        if not videos and name not in class_names:
            fix = "remove it, or name the classes in data.classes"
            problems.append(f"{folder / name}: no videos in this class folder; {fix}")
        elif name not in rules.class_names:
            problems.append(f"{folder / name}: unknown class{did_you_mean(name, class_names)}")
    _refuse(problems)
    samples = tuple(
        Sample(path=str(video.absolute()), labels=(label,))
        for label, name in enumerate(rules.class_names)
        for video in by_class.get(name, ())
    )
    return samples, rules


def refuse_split_folders(folder: Location) -> None:
    """Raise DataError if a folder has subfolders named train, val or test, which are not classes."""
    splits = split_folders(folder)
    if splits:
        names = sorted(splits.values())
        raise DataError(
            f"{folder}: its folders {', '.join(names)} are lists, not classes; name one of them, such as "
            f"{folder / splits.get('train', names[0])}"
        )


def _with_class_names(source: Location, names: tuple[str, ...], rules: LabelRules) -> LabelRules:
    """Add class names, given or used in the source, to the rules; refuses impossible names."""
    head, first = rules.heads[0], join_first(names)
    if names and rules.is_fixed and not rules.class_names:
        raise DataError(
            f"{source}: its labels are names ({first}), and the checkpoint or training list has "
            "no class names; set data.classes or use numbers"
        )
    if names and head.outputs not in (0, len(names)):
        raise DataError(
            f"{source}: has {len(names)} classes ({first}), but data.num_classes is {head.outputs}; "
            "correct it, or leave it out"
        )
    joined = [name for name in names if JOINED_BY in name]
    if joined and head.task == MULTI_LABEL:
        problem = f"the class '{joined[0]}' has a '{JOINED_BY}' in its name, which joins classes; rename it"
        raise DataError(f"{source}: {problem}")
    return replace(rules, class_names=names)


def _samples_of_list(
    file: Location, rows: Sequence[ListRow], root: Location, rules: LabelRules | None, *, skip_missing: bool
) -> tuple[Sample, ...]:
    """The samples of a list; DataError for wrong rows, missing videos, or two classes of one sample."""
    listed: list[tuple[ListRow, Sample]] = []
    problems: list[str] = []
    first_rows: dict[str, tuple[object, ListRow]] = {}  # class and first row of each video or segment
    for row in rows:
        try:
            sample = read_sample(row, root, rules.read(row) if rules else ())
        except ValueError as problem:
            problems.append(f"{row.where}: {problem}")
            continue
        listed.append((row, sample))
        if len(sample.labels) != 1 or not isinstance(sample.labels[0], int):
            continue
        label, first = first_rows.setdefault(sample.video_id, (sample.labels[0], row))
        if label != sample.labels[0]:
            here, there = (shorten(line.values.get("label", "")) for line in (row, first))
            problems.append(
                f"{row.where}: {sample.video_id} has the class '{here}' here and '{there}' in line "
                f"{first.where.rpartition(':')[2]}; keep one of the rows"
            )
    _refuse(problems)
    # The shards that an index names are known to be there.
    files = [(row, sample) for row, sample in listed if sample.member is None]
    absent = _absent_videos({sample.path for _, sample in files})
    if absent and all(sample.path in absent for _, sample in files):
        first = files[0][1].path
        raise DataError(
            f"{file}: none of its videos were found, for example {first}; {_explain_missing(files, root)}"
        )
    if not skip_missing:
        _refuse([f"{row.where}: {absent[sample.path]}" for row, sample in files if sample.path in absent])
    return tuple(sample for _, sample in listed)


def _explain_missing(files: Sequence[tuple[ListRow, Sample]], root: Location) -> str:
    """Why no video of a list is found, and what to change."""
    for row, sample in files[:2]:  # the first line may be a header that names no known column
        if row.header is None and ";" in row.text:
            return f"{row.where}: separate path and label by a comma or a tab, not by a semicolon"
        if "\\" in row.values["path"]:
            return f"{row.where}: write the path with / instead of \\"
        path = Path(sample.path)
        if similar := next(path.parent.glob(f"{glob.escape(path.name)}.*"), None):
            return f"{row.where}: the path has no ending; write {similar.name}"
    return (
        f"paths are relative to {root}; move the list into the folder of its videos, or use --data DIR in "
        "commands that have it"
    )


def _absent_videos(paths: Collection[str]) -> dict[str, str]:
    """The paths without a video, each with the reason."""

    @cache  # each folder of a storage is listed once
    def children(folder: RemotePath) -> set[RemotePath]:
        try:
            return set(folder.iterdir())
        except FileNotFoundError:
            return set()

    absent: dict[str, str] = {}
    for path in sorted(paths):
        video = parse_location(path)
        try:
            exists = video in children(video.parent) if isinstance(video, RemotePath) else video.exists()
            reason = f"no file {path}"
        except OSError as error:  # for example a name that is too long, or a folder without permission
            exists, reason = False, f"cannot look for {path}: {error.strerror}"
        if not exists:
            absent[path] = reason
    return absent


def _refuse(problems: Sequence[str]) -> None:
    """Raise DataError with the first problems, if there are any."""
    if problems:
        raise DataError(one_per_line(problems))
