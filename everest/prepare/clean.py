"""Write lists without the problems that a check reported, next to the originals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

from everest.lists.checked import CheckedList
from everest.lists.text import read_lines
from everest.lists.writing import names_readable, write_lines, write_list
from everest.prepare.check import Check, Copy


def clean_path(source: CheckedList) -> Path:
    """The path of a source's cleaned list."""
    path = source.path.absolute()
    return path.with_name(f"{path.stem}.clean{path.suffix}" if source.is_list else f"{path.name}.clean.csv")


def write_clean_lists(check: Check, *, names: Sequence[str]) -> list[Path]:
    """Write a list for every source that has rows with problems; returns the files.

    Rows with unusable videos or labels are dropped. If a video is certain to be in several lists (the same
    file, the same bytes), only the last list keeps it, so that no test video stays in training; if it is
    twice in one list, its first row stays.

    Args:
        names: the class names that a cleaned list of class folders uses.
    """
    dropped = {  # the `id()` of each row
        id(row)
        for source in check.sources
        for row in source.rows
        if row.problem is not None or row.sample.path in check.bad or row.sample.video_id in check.bad
    }
    groups: dict[Hashable, list[Copy]] = {}  # rows with the same bytes, in the order of the lists
    for source in check.sources:
        for row in source.rows:
            if id(row) not in dropped:
                copy, path = Copy(source, row), row.sample.path
                groups.setdefault((check.inspections[path].content or path, copy.scope), []).append(copy)
    for copies in groups.values():
        first = next(copy for copy in copies if copy.source is copies[-1].source)
        dropped |= {id(copy.row) for copy in copies if copy is not first}
    written = []
    for source in check.sources:
        kept = [row for row in source.rows if id(row) not in dropped]
        if len(kept) == len(source.rows) and not source.unreadable:
            continue
        path = clean_path(source)
        written.append(path)
        if not source.is_list:
            samples = [row.sample for row in kept]
            write_list(path, samples, root=source.path.absolute(), label_names=names_readable(names))
            continue
        # All other lines as they are, with the header.
        removed = {row.where for row in source.rows if id(row) in dropped} | set(source.unreadable)
        lines = read_lines(source.path, any_names=True)
        write_lines(path, [line for number, line in lines if f"{source.path}:{number}" not in removed])
    return written
