"""The text of a list of videos: its separator, its header and its rows.

A line is `path label`, separated by a tab, a comma or a space; paths with spaces are quoted if a space
separates. The text is UTF-8.

A header is optional. It names the columns of `COLUMNS`, a column `label.NAME` for each of several heads, and
others, which are ignored. In a sheet of another program, the columns of paths and classes are found by their
usual names. Semicolons may separate a list that has a header, too.
"""

from __future__ import annotations

import csv
import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from everest.errors import DataError, RecipeError, did_you_mean, shown
from everest.system.storage import Location
from everest.system.text import counted
from everest.video.folders import as_data_error, refuse_video
from everest.video.source import Member

SEGMENT_COLUMNS: Final = ("start", "end", "start_frame", "end_frame")
GROUP_COLUMN: Final = "group"
COLUMNS: Final = ("path", "label", *SEGMENT_COLUMNS, GROUP_COLUMN)
HEAD_PREFIX: Final = "label."
SIMILAR: Final = 0.8  # our choice: of two names, from which one may be a misspelling of the other
# Our choice: names of a column of paths, or of classes, in sheets; without spaces, in lower case.
PATH_NAMES: Final = frozenset(
    {"file", "filename", "file_name", "filepath", "file_path", "full_path", "movie", "movie_path"}
    | {f"{what}{part}" for what in ("video", "clip") for part in ("", "_file", "_name", "_path", "path")}
)
CLASS_NAMES: Final = frozenset(
    {"class", "class_name", "classname", "category", "action", "activity", "behavior", "behaviour"}
)
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
    """Returns a line in quotes for a message, without its middle if it is long."""
    return f"'{shown(line.strip())}'"


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


def is_known(column: str) -> bool:
    """Whether training reads a column."""
    return column in COLUMNS or column.startswith(HEAD_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The columns of a list."""

    where: str  # file:line, for messages
    # As written: key of `ListRow.values` (of COLUMNS, `label.NAME`, else as written).
    columns: Mapping[str, str]

    @property
    def has_classes(self) -> bool:
        """Whether a column holds labels."""
        return any(map(_holds_labels, self.columns.values()))

    def notice(self) -> str | None:
        """A line about the columns of a sheet; None if there are only everest's columns."""
        parts = [
            f"{name} from the column '{column}'"
            for column, name in self.columns.items()
            if is_known(name) and _plain(column) != _plain(name)
        ]
        ignored = ", ".join(column for column, name in self.columns.items() if not is_known(name))
        parts += [f"ignored columns: {ignored}"] if ignored else []
        return f"{self.where.rpartition(':')[0]}: {'; '.join(parts)}" if parts else None

    def no_classes(self, file: object) -> str | None:
        """The problem of a sheet without a column of classes; None if no other column may hold them."""
        others = [
            column for column, name in self.columns.items() if name == GROUP_COLUMN or not is_known(name)
        ]
        if self.has_classes or not others:
            return None
        return (
            f"{self.where}: no column is known to hold the classes ({', '.join(others)}); rename one to "
            f"'label', or run `everest prepare split {shlex.quote(str(file))} --class-column NAME`, which "
            "writes lists"
        )


def is_header(fields: Sequence[str]) -> bool:
    """Whether the fields of the first line are names of columns."""
    names = {_plain(field) for field in fields}
    return bool(
        names & {"path", "label"} or (names & PATH_NAMES and (names & CLASS_NAMES or len(fields) > 2))
    )


def find_header(
    where: str,
    rows: Sequence[Sequence[str]],
    *,
    class_column: str | None = None,
    group_column: str | None = None,
) -> Header | None:
    """Reads the header in the first row of a list; None if the list has none.

    Args:
        where: file:line of the first row.
        rows: the fields of all lines.
        class_column: the column of classes, as written in the sheet; None finds it by its name.
        group_column: the column of groups, as written in the sheet; None: `group`.
    """
    names = [field or f"column {number}" for number, field in enumerate(rows[0], start=1)]
    options = (("label", "--class-column ", class_column), (GROUP_COLUMN, "--group column:", group_column))
    chosen = {key: (option, column) for key, option, column in options if column is not None}
    for option, column in chosen.values():
        if column not in names:
            hint = did_you_mean(column, names) if is_header(rows[0]) else ""
            raise RecipeError(f"{option}{column}: no such column in {where}{hint}")
    if not is_header(rows[0]) and not chosen:
        return None
    columns = {field: _plain(field) if _plain(field) in COLUMNS else field for field in names}
    # Only the one of exactly this name counts; others are ignored.
    if list(columns.values()).count(GROUP_COLUMN) > 1:
        columns = {field: field if name == GROUP_COLUMN else name for field, name in columns.items()}
    classes = [column for column in names if _plain(column) in CLASS_NAMES]
    if len(classes) == 1 and not any(map(_holds_labels, columns.values())):
        columns[classes[0]] = "label"
    for key, (option, column) in chosen.items():
        if key == GROUP_COLUMN and _holds_labels(columns[column]):
            raise RecipeError(f"{option}{column}: holds the labels in {where}; name another column")
        columns = {field: f"{name} (not used)" if name == key else name for field, name in columns.items()}
        columns[column] = key
    paths = [column for column, name in columns.items() if _plain(name) in PATH_NAMES]
    if "path" not in columns.values() and len(paths) == 1:
        columns[paths[0]] = "path"
    if "path" not in columns.values() or len(set(columns.values())) < len(names):
        raise DataError(f"{where}: the header needs the column 'path', and every column once")
    _refuse_misspelled_times(where, columns, rows[1:])
    return Header(where=where, columns=columns)


def _refuse_misspelled_times(where: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> None:
    """Raise DataError for a column of numbers whose name resembles that of a time, which is absent.

    It would be ignored, and whole videos read in place of their segments.
    """
    absent = [column for column in SEGMENT_COLUMNS if column not in columns.values()]
    beginnings = tuple(f"{column}_" for column in ("start", "end") if column in absent)
    for index, name in enumerate(columns.values()):
        plain = _plain(name)
        is_similar = plain.startswith(beginnings) or difflib.get_close_matches(plain, absent, cutoff=SIMILAR)
        values = [row[index] for row in rows if index < len(row) and row[index]]
        is_time = values and None not in map(as_number, values)
        if not is_known(name) and is_similar and is_time:
            raise DataError(
                f"{where}: unknown column '{name}', which may name a segment of each video; rename it to one "
                f"of {', '.join(SEGMENT_COLUMNS)}, or remove it"
            )


def _holds_labels(name: str) -> bool:
    return name == "label" or name.startswith(HEAD_PREFIX)


def _plain(field: str) -> str:
    return field.strip().lower().replace(" ", "_").replace("-", "_")


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
