"""Groups of videos that look alike, which stay in one list, and groups that are in several lists.

Clips of one recording, person or scene look alike. If some of them are in training and others in a test set,
the test measures memory.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from everest.errors import DataError, RecipeError, did_you_mean
from everest.lists.reading import SampleList
from everest.lists.sample import Sample
from everest.system.text import escape_bytes

FOLDER: Final = "folder"
PATH: Final = "path:"
COLUMN: Final = "column:"

GroupOf = Callable[[Sample], str]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A group with videos in several lists."""

    group: str
    lists: Mapping[str, int]  # its samples in each


def grouping(
    text: str | None, *, root: Path | None = None, lists: Mapping[Path, SampleList] | None = None
) -> GroupOf:
    """Returns the group of a sample for `--group`.

    Without a text, each video is a group. `folder` takes its folder, `column:NAME` a column of the list,
    `path:REGEX` (or an expression with a `/`) a part of its path, other expressions a part of its file name.

    Args:
        root: the folder that paths are taken relative to.
        lists: by path, with the rows whose columns name the groups.
    """
    if text is None:  # one name for a video, however its path is spelled and whatever links lead to it
        return lambda x: os.path.realpath(x.video) if isinstance(x.video, Path) else x.path
    if text == FOLDER:
        return lambda sample: str(Path(sample.path).parent)
    if text.startswith(COLUMN):
        return _by_column(text.removeprefix(COLUMN), lists or {})
    whole_path = text.startswith(PATH) or "/" in text
    try:
        pattern = re.compile(text.removeprefix(PATH))
    except re.error as error:
        raise RecipeError(
            f"--group {text}: neither '{FOLDER}' nor a regular expression ({error}), nor '{COLUMN}NAME'"
        ) from error
    if pattern.groups != 1:
        raise RecipeError(
            f"--group {text}: one pair of parentheses has to mark what names the group, as in _g(\\d+)_"
        )
    base = None if root is None else root.absolute()

    def group_of(sample: Sample) -> str:
        path = Path(sample.path)
        name = path.name
        if whole_path:
            name = (path.relative_to(base) if base and path.is_relative_to(base) else path).as_posix()
        match = pattern.search(name)
        if match is None or match.group(1) is None:
            fix = "" if whole_path else f"; '{PATH}{text}' matches its path"
            raise DataError(f"{sample.path}: --group {text} does not fit its name, {name}{fix}")
        return match.group(1)

    return group_of


def _by_column(column: str, lists: Mapping[Path, SampleList]) -> GroupOf:
    """Returns the values of a column of the lists."""
    groups: dict[Sample, str] = {}
    for path, listed in lists.items():
        header = listed.rows[0].header if listed.rows else None
        if listed.rows is None or header is None:
            raise RecipeError(f"--group {COLUMN}{column}: {path} has no header that names columns")
        names = dict(zip(header.written, header.names, strict=True))
        if column not in names:
            hint = did_you_mean(column, header.written)
            raise RecipeError(f"--group {COLUMN}{column}: no such column in {path}{hint}")
        for sample, row in zip(map(_ungrouped, listed.samples), listed.rows, strict=True):
            value = row.values.get(names[column])
            if value is None:
                raise DataError(f"{row.where}: the column '{column}' is empty, so the group is not known")
            if groups.setdefault(sample, value) != value:
                raise DataError(
                    f"{row.where}: the column '{column}' is '{value}', and '{groups[sample]}' in another row "
                    f"of {sample.video_id}"
                )
    return lambda sample: groups[_ungrouped(sample)]


def _ungrouped(sample: Sample) -> Sample:
    """Returns the sample without a group, so that one video with two groups is noticed."""
    return replace(sample, group=None)


def with_groups(samples: Sequence[Sample], group_of: GroupOf, *, base: Path | None = None) -> list[Sample]:
    """Returns the samples with their groups as a list holds them: bytes that are not UTF-8 as `\\xXX`.

    Args:
        base: groups are folders, and written relative to this one; None: they are not folders.
    """
    written = []
    for sample in samples:
        group = group_of(sample)
        if base is not None and Path(group).is_relative_to(base):
            group = Path(group).relative_to(base).as_posix()
        written.append(replace(sample, group=escape_bytes(group).strip()))
    return written


def find_leaks(lists: Mapping[str, Sequence[Sample]], group_of: GroupOf) -> list[Leak]:
    """The groups with samples in several lists, sorted by name."""
    counts: dict[str, Counter[str]] = {}
    for name, samples in lists.items():
        for sample in samples:
            counts.setdefault(group_of(sample), Counter())[name] += 1
    shared = {group: dict(in_list) for group, in_list in counts.items() if len(in_list) > 1}
    return [Leak(group=group, lists=in_list) for group, in_list in sorted(shared.items())]
