"""The text of a list of videos: which separator, which columns, which rows.

`path label` separated by tab, comma or space; paths with spaces quoted where space separates. A header is
optional; with one there can be the columns of `COLUMNS`, and `label.NAME` for every head of several.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.errors import DataError, did_you_mean

COLUMNS: Final = ("path", "label", "start", "end", "start_frame", "end_frame")
HEAD_PREFIX: Final = "label."
_SEPARATORS: Final = ("\t", ",", " ")

_NumberedRow = tuple[int, list[str]]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list."""

    place: str  # file:line, for messages
    values: dict[str, str]  # by column; a column without a value is left out


def read_rows(file: Path) -> list[Row]:
    """The rows of a list.

    Raises:
        DataError: it is no text, is empty, or its columns make no sense.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file in UTF-8 (byte {error.start})") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: the list is empty; it needs a line `path label` for every video")
    rows = _split(lines)
    columns = _header(file, rows[0])
    if columns:
        rows = rows[1:]
    else:
        columns = COLUMNS[: min(len(rows[0][1]), 2)]
    if not rows:
        raise DataError(f"{file}: the list has a header and no line under it")
    _check_widths(file, rows, columns)
    return [
        Row(f"{file}:{number}", {c: value for c, value in zip(columns, fields, strict=True) if value})
        for number, fields in rows
    ]


def _split(lines: list[tuple[int, str]]) -> list[_NumberedRow]:
    """The fields of all lines, by a separator that gives every line as many and at least two, if one does."""
    candidates = [[(number, _fields(line, separator)) for number, line in lines] for separator in _SEPARATORS]
    even = [rows for rows in candidates if len({len(fields) for _, fields in rows}) == 1]
    wide = [rows for rows in even if len(rows[0][1]) > 1]
    # A comma may be part of all paths of a list; what ends in numbers is the better reading.
    numbered = [rows for rows in wide if rows[-1][1][-1].isdigit()]
    uneven = [rows for rows in candidates if any(len(fields) > 1 for _, fields in rows)]
    return next(iter(numbered + wide + uneven + candidates))


def _fields(line: str, separator: str) -> list[str]:
    (fields,) = csv.reader([line.strip()], delimiter=separator, skipinitialspace=True)
    return [field.strip() for field in fields]


def _header(file: Path, first: _NumberedRow) -> list[str]:
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


def _check_widths(file: Path, rows: list[_NumberedRow], columns: Sequence[str]) -> None:
    for number, fields in rows:
        if len(fields) != len(columns):
            raise DataError(
                f"{file}:{number}: {len(fields)} fields where {', '.join(columns)} are expected; "
                "quote paths with spaces, or separate by tabs; further columns need a header"
            )
