"""The text of a list of videos: its separator and its rows.

A line is `path label`, separated by a tab, a comma or a space; paths with spaces are quoted if a space
separates. A header is optional (everest.lists.header); semicolons may separate a list that has one, too. The
text is UTF-8.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.errors import DataError
from everest.lists.header import COLUMNS, Header, find_header, is_header
from everest.system.storage import Location
from everest.system.text import counted
from everest.video.folders import as_data_error, refuse_video
from everest.video.source import Member

LONGEST_SHOWN: Final = 60  # characters of a line that a message repeats
# With the characters to strip from a line (None: all white space): a tab at its end may end an empty cell.
_SEPARATORS: Final = (("\t", None), ("\t", " "), (",", None), (" ", None))
_OF_SHEETS: Final = (";", " ")  # where a comma separates decimals; for a list with a header only


@dataclass(frozen=True, slots=True)
class ListRow:
    """A line of a list."""

    where: str  # file:line, for messages
    values: dict[str, str]  # by column, without empty values
    text: str  # the line as written
    member: Member | None = None  # the video, if it is in a shard
    header: Header | None = None  # of the list


def read_rows(
    file: Location, *, class_column: str | None = None, group_column: str | None = None
) -> list[ListRow]:
    """Reads the rows of a list.

    Args:
        class_column: the column of classes in a sheet; None finds it by its name.
        group_column: the column of groups in a sheet; None: `group`.
    """
    lines = read_lines(file)
    if not lines:
        raise DataError(f"{file}: the list is empty; it needs a line `path label` for every video")
    for number, line in lines:
        if line.lstrip().startswith("#"):
            raise DataError(
                f"{file}:{number}: {quoted(line)} looks like a comment, and a list has none; remove the line "
                "(a path that begins with # is written ./#…)"
            )
    fields_of_lines = _split(file, lines)
    header = find_header(
        f"{file}:{lines[0][0]}", fields_of_lines, class_column=class_column, group_column=group_column
    )
    columns: Sequence[str] = COLUMNS[: min(max(map(len, fields_of_lines)), 2)]
    if header is not None:
        columns, lines, fields_of_lines = list(header.columns.values()), lines[1:], fields_of_lines[1:]
    if not lines:
        raise DataError(f"{file}: the list has a header and no line under it")
    rows = []
    for (number, line), fields in zip(lines, fields_of_lines, strict=True):
        if len(fields) != len(columns):
            raise DataError(
                f"{file}:{number}: {counted(len(fields), 'field')} where {', '.join(columns)} are expected; "
                "quote paths with spaces, or separate by tabs; further columns need a header; the line is "
                f"{quoted(line)}"
            )
        values = {column: value for column, value in zip(columns, fields, strict=True) if value}
        rows.append(ListRow(f"{file}:{number}", values, line, header=header))
    return rows


def read_lines(file: Location) -> list[tuple[int, str]]:
    """Reads the lines of a text that are not blank, with their numbers from 1; skips a byte order mark."""
    if isinstance(file, Path) and file.exists() and not file.is_file():  # a device may have no end
        raise DataError(f"{file}: not a regular file")
    refuse_video(file)
    with as_data_error(file):
        content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        fix = "save it in that encoding, and rename videos whose names are not"
        raise DataError(f"{file}:{line}: not in UTF-8; {fix}") from error
    if "\0" in text:
        raise DataError(f"{file}: not a text file")
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def quoted(line: str) -> str:
    """Returns a line in quotes for a message, shortened if it is long."""
    line = line.strip()
    return f"'{line}'" if len(line) <= LONGEST_SHOWN else f"'{line[:LONGEST_SHOWN]}…'"


def _split(file: Location, lines: Sequence[tuple[int, str]]) -> list[list[str]]:
    """Returns the fields of all lines, split by a separator that gives each line equally many, at least 2."""
    separators: Sequence[tuple[str, str | None]] = _SEPARATORS
    if ";" in lines[0][1]:
        (names,) = _parse(file, lines[:1], *_OF_SHEETS)
        separators = (_OF_SHEETS,) if len(names) > 1 and is_header(names) else _SEPARATORS
    candidates = [_parse(file, lines, separator, ends) for separator, ends in separators]
    even = [rows for rows in candidates if len(set(map(len, rows))) == 1]
    wide = [rows for rows in even if len(rows[0]) > 1]
    # Paths may contain commas: prefer a separator whose last field is a number.
    numbered = [rows for rows in wide if rows[-1][-1].isdigit()]
    uneven = [rows for rows in candidates if any(len(fields) > 1 for fields in rows)]
    return next(iter(numbered + wide + uneven + candidates))


def _parse(
    file: Location, lines: Sequence[tuple[int, str]], separator: str, ends: str | None
) -> list[list[str]]:
    """Returns the fields of lines; `ends` are the characters to remove from both ends of a line."""
    rows = []
    for number, line in lines:
        try:
            (fields,) = csv.reader([line.strip(ends)], delimiter=separator, skipinitialspace=True)
        except csv.Error as error:  # a field of more than 131072 characters
            raise DataError(
                f"{file}:{number}: {error}; a line is `path label`, this is {quoted(line)}"
            ) from error
        rows.append([field.strip() for field in fields])
    return rows
