"""The text of a list of videos: which separator, which columns, which rows.

`path label` separated by tab, comma or space; paths with spaces quoted where space separates. A header is
optional; with one there can be the columns of `COLUMNS`, and `label.NAME` for every head of several.

Labels in the rows of a list: class names or numbers, one or one for each head.

A reader takes a row and gives its labels; it raises ValueError with what is wrong.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from everest.errors import DataError, did_you_mean
from everest.system.storage import Location
from everest.video.folders import as_data_error
from everest.video.source import Member

COLUMNS: Final = ("path", "label", "start", "end", "start_frame", "end_frame")
HEAD_PREFIX: Final = "label."
LONGEST_SHOWN: Final = 60  # letters of a line that a message repeats
_SEPARATORS: Final = ("\t", ",", " ")

_NumberedLine = tuple[int, str]
_NumberedRow = tuple[int, list[str]]


@dataclass(frozen=True, slots=True)
class ListRow:
    """A line of a list."""

    place: str  # file:line, for messages
    values: dict[str, str]  # by column; a column without a value is left out
    text: str  # as it stands in the file
    member: Member | None = None  # the video, where it is in a shard


def read_rows(file: Location) -> list[ListRow]:
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
        ListRow(
            f"{file}:{number}", {c: value for c, value in zip(columns, fields, strict=True) if value}, line
        )
        for (number, line), (_, fields) in zip(lines, rows, strict=True)
    ]


def read_lines(file: Location) -> list[tuple[int, str]]:
    """The lines of a text that hold something, with their numbers from 1; a byte order mark is left out.

    Raises:
        DataError: it cannot be read, or is no text in UTF-8.
    """
    try:
        with as_data_error(file):
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


ReadLabels = Callable[[ListRow], tuple[int, ...]]


def no_labels(row: ListRow) -> tuple[int, ...]:
    """The reader for pre-training."""
    return ()


def label_of(names: Sequence[str], num_classes: int) -> ReadLabels:
    """A reader of the column `label`: a name, or a number below `num_classes` (0: any).

    Where names are numbers themselves, a number is a name and no index.
    """
    index_of = {name: index for index, name in enumerate(names)}
    takes_indices = not any(map(is_integer, names))

    def read(row: ListRow) -> tuple[int, ...]:
        if "label" not in row.values:
            raise ValueError(_label_missing(row))
        text = row.values["label"]
        if text in index_of:
            return (index_of[text],)
        if takes_indices and is_integer(text):
            return (_in_range("label", int(text), num_classes),)
        if takes_indices and _is_number_like(text):
            raise ValueError(f"label '{text}' is no whole number from 0")
        no_names = "; other labels are numbers, and data.classes is not set"
        raise ValueError(f"unknown class '{text}'{did_you_mean(text, names) if names else no_names}")

    return read


def _label_missing(row: ListRow) -> str:
    """What is wrong with a line that has no label."""
    text = f"no label in {shown(row.text)}; a line is `path label`, separated by a space, tab or comma"
    return f"{text}, not by ';'" if ";" in row.text else text


def labels_of(heads: Mapping[str, int]) -> ReadLabels:
    """A reader of one column for every head."""

    def read(row: ListRow) -> tuple[int, ...]:
        labels = []
        for column, num_classes in zip(columns_of(heads), heads.values(), strict=True):
            if not is_integer(row.values.get(column, "")):
                raise ValueError(f"the column {column} needs a number")
            labels.append(_in_range(column, int(row.values[column]), num_classes))
        return tuple(labels)

    return read


def columns_of(heads: Mapping[str, int]) -> list[str]:
    """The columns of a list that hold the labels of several heads."""
    return [f"{HEAD_PREFIX}{name}" for name in heads]


def is_integer(text: str) -> bool:
    """Whether a label is read as a number."""
    return text.isascii() and text.removeprefix("-").isdecimal()


def _is_number_like(text: str) -> bool:
    """Whether a text means a number, whole or not: `1.0`, `+1`, `1e3`, `nan` and `²` do, `1_0` does not."""
    if text.isnumeric():
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _in_range(name: str, label: int, num_classes: int) -> int:
    if label < 0 or 0 < num_classes <= label:
        allowed = f"from 0 to {num_classes - 1}" if num_classes else "from 0"
        raise ValueError(f"{name} {label} is out of range: labels count {allowed}")
    return label


def names_used(rows: Sequence[ListRow]) -> list[str]:
    """Class names used as labels, sorted; nothing when labels are numbers."""
    labels = {row.values["label"] for row in rows if "label" in row.values}
    return [] if any(map(is_integer, labels)) else sorted(x for x in labels if not _is_number_like(x))
