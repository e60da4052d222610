"""The videos of a data set and their labels, from a list or from folders, checked before a run starts.

The text of a list is described in everest.lists.text; the index of shards, which is a list too, in
everest.lists.shards. A folder has a subfolder for every class; without labels, any folder of videos will do.
A folder of images counts as a video.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everest.config.heads import MULTI_LABEL, Heads, Task
from everest.errors import DataError, did_you_mean, first_names
from everest.lists.labels import (
    JOINED_BY,
    SEPARATED,
    SEVERAL,
    LabelRules,
    columns_of,
    missing_columns,
    names_used,
)
from everest.lists.sample import Sample, refuse, samples_of_list
from everest.lists.shards import INDEX_SUFFIX, find_index, read_index
from everest.lists.text import ListRow, quoted, read_rows
from everest.system.storage import Location
from everest.video.folders import (
    as_data_error,
    loose_videos_notice,
    no_list,
    videos_by_subfolder,
    videos_under,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleList:
    """The samples of a list or a folder."""

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...] | None  # None: only the indices of the classes are known
    rows: Sequence[ListRow] | None = None  # of each sample, if other columns are needed; None for a folder
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
    used_columns: Collection[str] = (),
) -> SampleList:
    """Read and check a list or a folder.

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
        used_columns: further columns that the caller reads, as written; the notice calls others ignored.
    """
    rows = _rows(source, class_column)
    rules = LabelRules(
        names=tuple(classes or ()),
        num_classes=num_classes,
        task=task,
        heads=heads,
        of_model=not names_classes,
    )
    names: tuple[str, ...] = ()
    if rows is None and labeled:
        samples, names = _of_class_folders(source, rules)
    elif rows is None:
        samples = tuple(Sample(path=str(video.absolute())) for video in videos_under(source))
        if not samples:
            raise DataError(f"{source}: no videos in it")
    elif labeled:
        rules = _rules_of_list(source, rows, rules)
        names = rules.names if rules.has_names else ()
        samples = samples_of_list(source, rows, root, rules, may_miss=may_miss)
    else:
        samples = samples_of_list(source, rows, root, None, may_miss=may_miss)
    header = rows[0].header if rows else None
    notices = [header.notice(used=used_columns) if header else None]
    if rows is None and labeled:
        notices.append(loose_videos_notice(source))
    if not classes and task == "single-label" and any(JOINED_BY in name for name in names):
        notices.append(f"{source}: a label with '{JOINED_BY}' is read as one class; {SEVERAL}")
    notice = "\n".join(text for text in notices if text is not None) or None
    return SampleList(samples=samples, class_names=names or None, notice=notice)


def _rows(source: Location, class_column: str | None) -> Sequence[ListRow] | None:
    """The rows of a list or of the index of shards; None of a folder of videos."""
    with as_data_error(source):
        if not source.exists():
            raise DataError(f"{no_list(source)}; set data.root, by --data DIR")
        index = find_index(source)
        if index:
            return read_index(index)
        return read_rows(source, class_column=class_column) if source.is_file() else None


def read_list(path: Path, class_column: str | None = None) -> list[ListRow] | None:
    """The rows of a list; None for a folder."""
    with as_data_error(path):
        if not path.exists():
            raise DataError(f"{path}: no such list or folder")
        if path.name.endswith(INDEX_SUFFIX):
            raise DataError(f"{path}: an index of shards; name the list or folder that they were made from")
        return read_rows(path, class_column=class_column) if path.is_file() else None


def _rules_of_list(source: Location, rows: Sequence[ListRow], rules: LabelRules) -> LabelRules:
    """The rules with the names of the classes; refuses a list without the labels that the rules need."""
    header = rows[0].header
    missing = missing_columns(rows, rules.heads)
    if missing and rows[0].member is None:  # the index of shards leaves out empty columns
        columns = header.names if header else tuple(rows[0].values)
        raise DataError(
            f"{source}: the list has no column {', '.join(missing)}, which data.heads names; its columns are "
            f"{', '.join(columns)}"
        )
    if header and header.unassigned and not header.has_classes:
        raise header.no_classes(source)
    if rules.has_names:
        names = rules.names or names_used(rows, rules.task)
        _check_names(source, names, rules)
        rules = replace(rules, names=names)
    _refuse_empty_columns(source, rows, rules)
    return rules


def _of_class_folders(folder: Location, rules: LabelRules) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The videos of the subfolders, and the names of the classes."""
    if rules.heads:
        columns = ", ".join(columns_of(head.name for head in rules.heads))
        raise DataError(f"{folder}: data.heads needs a list with the columns {columns}")
    if rules.task != "single-label":
        raise DataError(
            f"{folder}: data.task {rules.task} needs a list; a class folder gives one class to a video"
        )
    by_class = videos_by_subfolder(folder)
    names = rules.names or tuple(by_class)
    _check_names(folder, names, rules)
    if not by_class:
        raise DataError(f"{folder}: no subfolders; a folder of labeled videos has one for every class")
    unknown = [name for name in by_class if name not in names]
    lines = [f"{folder / name}: unknown class{did_you_mean(name, names)}" for name in unknown]
    refuse(lines, "classes are unknown")
    if not any(by_class.values()):
        raise DataError(f"{folder}: no videos in its {len(by_class)} subfolders")
    fix = "no videos in this class folder; remove it, or name the classes in data.classes"
    empty = [f"{folder / name}: {fix}" for name, videos in by_class.items() if not videos]
    refuse([] if rules.names else empty, "class folders are empty")
    samples = tuple(
        Sample(path=str(video.absolute()), labels=(label,))
        for label, name in enumerate(names)
        for video in by_class.get(name, ())
    )
    return samples, names


def _check_names(source: Location, names: Sequence[str], rules: LabelRules) -> None:
    """Raise DataError if these names, given or used in the source, cannot be the classes."""
    first = first_names(names)
    if names and rules.of_model and not rules.names:
        raise DataError(
            f"{source}: its labels are names ({first}), and the checkpoint or training list has "
            "no class names; set data.classes or use numbers"
        )
    if names and rules.num_classes not in (None, len(names)):
        raise DataError(
            f"{source}: data.num_classes is {rules.num_classes}, there are {len(names)} ({first})"
        )
    for name in names:
        if rules.task == MULTI_LABEL and JOINED_BY in name:
            raise DataError(
                f"{source}: the class '{name}' has a '{JOINED_BY}' in its name, which joins classes; "
                "rename it"
            )


def _refuse_empty_columns(source: Location, rows: Sequence[ListRow], rules: LabelRules) -> None:
    """Raise DataError if a label column is empty in every row; single cells may be, for multi-label.

    A model that is not trained on the list may find no video with a class in it.
    """
    nothing, trains = "so there is nothing to learn", not rules.of_model
    if not rules.heads and not any("label" in row.values for row in rows):
        header = rows[0].header
        is_column = header is not None and "label" in header.names
        if is_column and rules.task == MULTI_LABEL:
            if trains:
                raise DataError(f"{source}: the column label is empty in all rows, {nothing}")
            return
        reason = "the column label is empty in all rows" if is_column else SEPARATED
        raise DataError(f"{rows[0].where}: no label in {quoted(rows[0].text)}; {reason}")
    for head in rules.heads:
        (column,) = columns_of([head.name])
        if trains and head.task == MULTI_LABEL and not any(column in row.values for row in rows):
            raise DataError(f"{source}: no video has a class in the column {column}, {nothing}")
