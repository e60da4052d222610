"""The lists and folders of `everest prepare check`: the problem of each row is kept with the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everest.config.heads import Heads, Task
from everest.errors import DataError
from everest.lists.class_folders import refuse_split_folders
from everest.lists.label_facts import TwoKinds, empty_columns, find_task, find_two_kinds, open_heads
from everest.lists.labels import LabelRules, columns_of, missing_columns, names_used
from everest.lists.reading import read_list
from everest.lists.sample import Sample, samples_of_rows
from everest.lists.text import ListRow
from everest.video.folders import videos_by_subfolder, videos_under


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """A row of a list, or a file of a folder."""

    where: str  # file:line for messages; the path of a file in a folder
    sample: Sample  # without labels if they are wrong
    problem: str | None = None  # what is wrong with the row


@dataclass(frozen=True, kw_only=True)
class CheckedList:
    """A list or folder of videos."""

    path: Path
    rows: Sequence[CheckedSample]
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


def read_checked(
    paths: Mapping[Path, bool], *, root: Path | None, rules: LabelRules, task: Task | None = None
) -> tuple[list[CheckedList], LabelRules]:
    """Read lists and folders; returns them and the rules for their labels.

    Args:
        paths: each with whether it is for pre-training, which ignores labels.
        root: the folder that paths in a list are relative to; None takes the folder of the list.
        rules: if they have no names, those used by the first source that is not for pre-training, sorted.
        task: what a label is; None: as the labels show.
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
) -> CheckedList:
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
    return CheckedList(
        path=path,
        rows=[CheckedSample(where, sample, problems.get(where)) for where, sample in samples.items()],
        labeled=labeled,
        pretrains=pretrains,
        unreadable={where: problem for where, problem in problems.items() if where not in samples},
        heads=heads,
        empty_columns=empty,
        missing_columns=missing,
        two_kinds=find_two_kinds(rows, rules.task) if is_one_column else None,
    )


def _read_folder(path: Path, rules: LabelRules, *, pretrains: bool) -> CheckedList:
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
                rows.append(CheckedSample(str(video), sample, problem))
    else:
        rows = [CheckedSample(str(video), Sample(path=str(video.absolute()))) for video in videos_under(path)]
    if not rows:
        raise DataError(f"{path}: no videos in it")
    return CheckedList(path=path, rows=rows, labeled=labeled, pretrains=pretrains, unreadable={})
