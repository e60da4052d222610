"""The text of a list of videos: which separator, which columns, which rows.

`path label` separated by tab, comma or space; paths with spaces quoted where space separates. A header is
optional; with one there can be the columns of `COLUMNS`, and `label.NAME` for every head of several.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from everest.errors import DataError, did_you_mean
from everest.system.storage import Location
from everest.video.folders import refusals_told
from everest.video.source import Member

COLUMNS: Final = ("path", "label", "start", "end", "start_frame", "end_frame")
HEAD_PREFIX: Final = "label."
LONGEST_SHOWN: Final = 60  # letters of a line that a message repeats
_SEPARATORS: Final = ("\t", ",", " ")

_NumberedLine = tuple[int, str]
_NumberedRow = tuple[int, list[str]]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list."""

    place: str  # file:line, for messages
    values: dict[str, str]  # by column; a column without a value is left out
    text: str  # as it stands in the file
    member: Member | None = None  # the video, where it is in a shard


def read_rows(file: Location) -> list[Row]:
    """The rows of a list.

    Raises:
        DataError: it is no text, is empty, or its columns make no sense.
    """
    lines = read_lines(file)
    if not lines:
        raise DataError(f"{file}: the list is empty; it needs a line `path label` for every video")
    _refuse_comments(file, lines)
    rows = _split(file, lines)
    columns = _header(file, rows[0])
    if columns:
        lines, rows = lines[1:], rows[1:]
    else:
        columns = COLUMNS[: min(max(len(fields) for _, fields in rows), 2)]
    if not rows:
        raise DataError(f"{file}: the list has a header and no line under it")
    for line, (_, fields) in zip(lines, rows, strict=True):
        _check_width(file, line, fields, columns)
    return [
        Row(f"{file}:{number}", {c: value for c, value in zip(columns, fields, strict=True) if value}, line)
        for (number, line), (_, fields) in zip(lines, rows, strict=True)
    ]


def read_lines(file: Location) -> list[tuple[int, str]]:
    """The lines of a text that hold something, with their numbers from 1; a byte order mark is left out.

    Raises:
        DataError: it cannot be read, or is no text in UTF-8.
    """
    try:
        with refusals_told(file):
            text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not a text file in UTF-8 (byte {error.start}); save it in that encoding"
        ) from error
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def shown(line: str) -> str:
    """A line as a message repeats it, cut when long."""
    line = line.strip()
    return f"'{line}'" if len(line) <= LONGEST_SHOWN else f"'{line[:LONGEST_SHOWN]}…'"


def _refuse_comments(file: Location, lines: Sequence[_NumberedLine]) -> None:
    for number, line in lines:
        if line.lstrip().startswith("#"):
            raise DataError(
                f"{file}:{number}: {shown(line)} looks like a comment, and a list has none; remove the line "
                "(a path that begins with # is written ./#…)"
            )


def _split(file: Location, lines: Sequence[_NumberedLine]) -> list[_NumberedRow]:
    """The fields of all lines, by a separator that gives every line as many and at least two, if one does."""
    candidates = [
        [(number, _fields(file, number, line, separator)) for number, line in lines]
        for separator in _SEPARATORS
    ]
    even = [rows for rows in candidates if len({len(fields) for _, fields in rows}) == 1]
    wide = [rows for rows in even if len(rows[0][1]) > 1]
    # A comma may be part of all paths of a list; what ends in numbers is the better reading.
    numbered = [rows for rows in wide if rows[-1][1][-1].isdigit()]
    uneven = [rows for rows in candidates if any(len(fields) > 1 for _, fields in rows)]
    return next(iter(numbered + wide + uneven + candidates))


def _fields(file: Location, number: int, line: str, separator: str) -> list[str]:
    try:
        (fields,) = csv.reader([line.strip()], delimiter=separator, skipinitialspace=True)
    except csv.Error as error:  # a field of more than 131072 letters
        raise DataError(f"{file}:{number}: {error}; a line is `path label`, this is {shown(line)}") from error
    return [field.strip() for field in fields]


def _header(file: Location, first: _NumberedRow) -> list[str]:
    """The names of the columns, or nothing when the first line is a video."""
    number, fields = first
    names = [field.lower() if field.lower() in COLUMNS else field for field in fields]
    if "path" not in names and "label" not in names:
        return []
    for name in names:
        if name not in COLUMNS and not name.startswith(HEAD_PREFIX):
            known = (*COLUMNS, f"{HEAD_PREFIX}NAME")
            raise DataError(f"{file}:{number}: unknown column '{name}'{did_you_mean(name, known)}")
    if "path" not in names or len(set(names)) < len(names):
        raise DataError(f"{file}:{number}: the header needs the column 'path', and every column once")
    return names


def _check_width(file: Location, line: _NumberedLine, fields: Sequence[str], columns: Sequence[str]) -> None:
    number, text = line
    if len(fields) != len(columns):
        count = f"{len(fields)} field{'s' if len(fields) > 1 else ''}"
        raise DataError(
            f"{file}:{number}: {count} where {', '.join(columns)} are expected; "
            f"{_mend(fields, columns)}; the line is {shown(text)}"
        )


def _mend(fields: Sequence[str], columns: Sequence[str]) -> str:
    """What to do about a line of another width."""
    if len(fields) < len(columns):
        return "fill in what is missing, separated like the other lines"
    if not fields[-1]:
        return "the line ends in a separator: remove it"
    if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
        return "of `path frames label` leave out the number of frames; further columns need a header"
    return "quote paths with spaces, or separate by tabs; further columns need a header"
