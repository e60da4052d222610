"""The lists and folders that `everest prepare check` and `split` read.

A check reads them tolerantly: the problem of each row is kept with the row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everest.config.heads import Heads, Task
from everest.errors import DataError, RecipeError
from everest.lists.class_folders import deeper_folders_notice, read_names, refuse_split_folders
from everest.lists.label_facts import (
    TwoKinds,
    empty_columns,
    find_task,
    find_two_kinds,
    found_notice,
    open_heads,
)
from everest.lists.labels import LabelRules, columns_of, missing_columns, names_used
from everest.lists.sample import Sample, samples_of_rows
from everest.lists.samples import SampleList, read_samples
from everest.lists.text import ListRow, read_rows
from everest.video.folders import as_data_error, videos_by_subfolder, videos_under


@dataclass(frozen=True, slots=True)
class ListedSample:
    """A row of a list, or a file of a folder."""

    where: str  # file:line for messages; the path of a file in a folder
    sample: Sample  # without labels if they are wrong
    problem: str | None = None  # what is wrong with the row


@dataclass(frozen=True, kw_only=True)
class Source:
    """A list or folder of videos."""

    path: Path
    rows: Sequence[ListedSample]
    labeled: bool
    pretrains: bool  # a list for pre-training: its videos may be in other lists, too
    unreadable: Mapping[str, str]  # `where` of each row that names no sample, and why
    heads: Heads = ()  # of the columns `label.NAME`
    empty_columns: Sequence[str] = ()  # of labels
    missing_columns: Sequence[str] = ()  # of heads
    two_kinds: TwoKinds | None = None  # names and numbers as labels

    @property
    def is_list(self) -> bool:
        return self.path.is_file()


def read_sources(
    paths: Mapping[Path, bool], *, root: Path | None, rules: LabelRules, task: Task | None = None
) -> tuple[list[Source], LabelRules]:
    """Read lists and folders; returns them and the rules for their labels.

    Args:
        paths: each with whether it is for pre-training, which ignores labels.
        root: the folder that paths in a list are relative to; None takes the folder of the list.
        rules: if they have no names, those used by the first source that is not for pre-training, sorted.
        task: what a label is; None: as the labels show.
    Raises:
        DataError: a source does not exist, is no list, or is empty; or a folder has classes, and the task is
            another one; or it has subfolders named train, val or test.
    """
    rows = {path: read_list(path) for path in paths}
    if not rules.heads:
        labeled = [row for path, listed in rows.items() if not paths[path] for row in listed or ()]
        rules = replace(rules, task=task or find_task(labeled, names=rules.names))
    first = next((path for path, pretrains in paths.items() if not pretrains), None)
    named = bool(rules.names)
    if first is not None and rules.has_names and not named:
        listed = rows[first]
        if listed is None:
            names = tuple(name for name, videos in videos_by_subfolder(first).items() if videos)
        else:
            names = names_used(listed, rules.task)
        rules = replace(rules, names=names)
    sources = []
    for path, listed in rows.items():
        if listed is None:
            sources.append(_read_folder(path, rules, pretrains=paths[path]))
        else:
            sources.append(_read_list(path, listed, root, rules, pretrains=paths[path], named=named))
    return sources, rules


def _read_list(
    path: Path, rows: list[ListRow], root: Path | None, rules: LabelRules, *, pretrains: bool, named: bool
) -> Source:
    """A list; `named`: the class names are not taken from the lists."""
    header = rows[0].header
    if header is not None and header.is_unclear and not pretrains:
        raise header.no_classes(path)
    empty = [] if pretrains else empty_columns(rows, rules.heads)
    missing = [] if pretrains else missing_columns(rows, rules.heads)
    every_head = rules.heads or open_heads(rows)
    heads = tuple(head for head in every_head if columns_of([head.name])[0] not in (*empty, *missing))
    has_labels = bool(every_head) or any("label" in row.values for row in rows)
    labeled = (has_labels or bool(empty)) and not pretrains
    # An empty column is one problem, not one of each row.
    is_readable = labeled and (bool(heads) or (not every_head and "label" not in empty))
    samples, problems = samples_of_rows(
        rows, root or path.parent, replace(rules, heads=heads) if is_readable else None
    )
    is_one_column = labeled and not (every_head or named)
    return Source(
        path=path,
        rows=[ListedSample(where, sample, problems.get(where)) for where, sample in samples.items()],
        labeled=labeled,
        pretrains=pretrains,
        unreadable={where: problem for where, problem in problems.items() if where not in samples},
        heads=heads,
        empty_columns=empty,
        missing_columns=missing,
        two_kinds=find_two_kinds(rows, rules.task) if is_one_column else None,
    )


def read_list(path: Path, class_column: str | None = None) -> list[ListRow] | None:
    """The rows of a list; None for a folder."""
    with as_data_error(path):
        if not path.exists():
            raise DataError(f"{path}: no such list or folder")
        return read_rows(path, class_column=class_column) if path.is_file() else None


def _read_folder(path: Path, rules: LabelRules, *, pretrains: bool) -> Source:
    if not pretrains:
        refuse_split_folders(path)
    by_class = {} if pretrains else videos_by_subfolder(path)
    labeled = any(by_class.values())
    if labeled and rules.task != "single-label":
        raise DataError(f"{path}: {rules.task} labels need a list; a class folder gives one class to a video")
    rows = []
    if labeled:
        for name, videos in by_class.items():
            labels = (rules.names.index(name),) if name in rules.names else ()
            problem = None if labels else f"unknown class '{name}'"
            for video in videos:
                sample = Sample(path=str(video.absolute()), labels=labels)
                rows.append(ListedSample(str(video), sample, problem))
    else:
        rows = [ListedSample(str(video), Sample(path=str(video.absolute()))) for video in videos_under(path)]
    if not rows:
        raise DataError(f"{path}: no videos in it")
    return Source(path=path, rows=rows, labeled=labeled, pretrains=pretrains, unreadable={})


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """The samples of a list or folder, with labels if it has any."""

    data: SampleList
    heads: list[str]  # names of the labels, if a sample has several
    rows: list[ListRow] | None  # of each sample; None for a folder
    task: Task  # of the first label
    notice: str | None = None  # about a task that the labels show, or folders inside class folders

    def without_labels(self, source: Path) -> str | None:
        """Returns a notice if a sheet has columns, but none that is known to hold the classes."""
        header = self.rows[0].header if self.rows else None
        if header is None or header.has_classes or not header.unassigned:
            return None
        columns = ", ".join(header.unassigned)
        return (
            f"{source}: no column is known to hold the classes ({columns}), so the lists have no labels; "
            "--class-column NAME names it"
        )


def read_labeled(
    source: Path,
    *,
    root: Path,
    classes: Path | None,
    class_column: str | None = None,
    task: Task | None = None,
    used_columns: Collection[str] = (),
) -> Labeled:
    """Reads the samples of a list or a folder.

    Args:
        class_column: the column of classes in a sheet; None finds it by its name.
        task: what a label is; None: as the labels show.
        used_columns: further columns that the caller reads, as written.
    Raises:
        DataError: a line or a file is wrong (`everest prepare check` lists all problems), the list has
            columns `label` and `label.NAME`, several columns may hold the classes, or the folders of a folder
            are lists.
        RecipeError: there is no column `class_column`, or the task does not go with the source.
    """
    rows = read_list(source, class_column)
    heads = open_heads(rows or [])
    names = read_names(classes) if classes else None
    if task == "regression" and names:
        raise RecipeError("--classes: has no effect with --task regression, whose labels are numbers")
    if rows is None:
        if class_column is not None:
            raise RecipeError(f"--class-column {class_column}: {source} is a folder, which has no columns")
        if task not in (None, "single-label"):
            raise RecipeError(
                f"--task {task}: {source} is a folder; its class folders give a video one class"
            )
        refuse_split_folders(source)
        labeled = any(videos_by_subfolder(source).values())
    else:
        has_label = any("label" in row.values for row in rows)
        if heads and has_label:
            raise DataError(f"{source}: has columns label and label.NAME; rename label to label.NAME, too")
        if heads and task is not None:
            raise RecipeError(f"--task {task}: is of a column label; {source} has columns label.NAME")
        header = rows[0].header
        is_unclear = header is not None and header.is_unclear
        labeled = bool(heads) or has_label or is_unclear or (task is not None and bool(empty_columns(rows)))
    found = task or find_task(rows or (), names=names or ())
    data = read_samples(
        source,
        root=root,
        classes=names,
        task=found,
        heads=heads,
        labeled=labeled,
        class_column=class_column,
        used_columns=used_columns,
    )
    notice = None if task else found_notice(source, found)
    if rows is None and labeled:
        notice = deeper_folders_notice(source.absolute(), data.samples, data.class_names or ())
    return Labeled(
        data=data,
        heads=[head.name for head in heads],
        rows=rows,
        task=heads[0].task if heads else found,
        notice=notice,
    )
