"""Lists without what a check found bad, written beside the originals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everest.data.list_text import read_lines
from everest.data.list_writing import write_list
from everest.prepare.check import Check
from everest.prepare.sources import ListedSample, Source
from everest.system.files import write_atomically


def clean_path(source: Source) -> Path:
    """Where the cleaned list of a source goes."""
    path = source.path.absolute()
    return path.with_name(f"{path.stem}.clean{path.suffix}" if source.is_list else f"{path.name}.clean.csv")


def write_clean_lists(check: Check, *, names: Sequence[str]) -> list[Path]:
    """Write a list for every source that has bad rows; returns the files.

    Rows with bad videos or labels go. Of copies that are sure (the same file, the same bytes) the last list
    keeps its row, so that training loses what is in a test; copies in one list leave the first row.

    Args:
        names: of the classes, by which a cleaned list of class folders names them.
    """
    dropped = _dropped(check)
    written = []
    for source in check.sources:
        kept = [row for row in source.rows if id(row) not in dropped]
        if len(kept) == len(source.rows) and not source.unreadable:
            continue
        path = clean_path(source)
        if source.is_list:
            _copy_lines(source, {row.place for row in source.rows if id(row) in dropped}, path)
        else:
            samples = [row.sample for row in kept]
            write_list(path, samples, root=source.path.absolute(), label_names=names)
        written.append(path)
    return written


def _dropped(check: Check) -> set[int]:
    """Identities of the rows that go."""
    gone = {id(row) for source in check.sources for row in source.rows if _is_bad(row, check)}
    order = {id(source): number for number, source in enumerate(check.sources)}
    for duplicate in check.duplicates:
        if duplicate.kind == "frames":
            continue
        copies = [copy for copy in duplicate.copies if id(copy.row) not in gone]
        if copies:
            last = max(copies, key=lambda copy: order[id(copy.source)]).source
            keeper = next(copy for copy in copies if copy.source is last)
            gone |= {id(copy.row) for copy in copies if copy is not keeper}
    return gone


def _is_bad(row: ListedSample, check: Check) -> bool:
    return row.problem is not None or row.sample.path in check.bad or row.sample.video_id in check.bad


def _copy_lines(source: Source, places: set[str], path: Path) -> None:
    """The lines of a list as they stand, header included, without those at `places`."""
    gone = places | set(source.unreadable)
    lines = [line for number, line in read_lines(source.path) if f"{source.path}:{number}" not in gone]
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))
