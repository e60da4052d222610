"""The header of a list of videos: which column holds the paths, the labels, the segments and the groups.

A list can have the columns of `COLUMNS`, a column `label.NAME` for each of several heads, and others, which
are ignored. In a sheet of another program, the columns of paths and classes are found by their usual names.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from everest.errors import DataError, RecipeError, did_you_mean

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

    @property
    def unassigned(self) -> list[str]:
        """The columns that may hold the classes of a list without labels, as written; `group` may, too."""
        return [column for column, name in self.columns.items() if name == GROUP_COLUMN or not is_known(name)]

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

    def no_classes(self, file: object) -> str:
        """The problem of a sheet that is read with labels and has no column of classes."""
        return (
            f"{self.where}: no column is known to hold the classes ({', '.join(self.unassigned)}); rename "
            f"one to 'label', or run `everest prepare split {shlex.quote(str(file))} --class-column NAME`, "
            "which writes lists"
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
    written = [field or f"column {number}" for number, field in enumerate(rows[0], start=1)]
    named = (("label", "--class-column ", class_column), (GROUP_COLUMN, "--group column:", group_column))
    chosen = {key: (option, column) for key, option, column in named if column is not None}
    for option, column in chosen.values():
        if column not in written:
            hint = did_you_mean(column, written) if is_header(rows[0]) else ""
            raise RecipeError(f"{option}{column}: no such column in {where}{hint}")
    if not is_header(rows[0]) and not chosen:
        return None
    columns = {field: _plain(field) if _plain(field) in COLUMNS else field for field in written}
    # Only the one of exactly this name counts; others are ignored.
    if list(columns.values()).count(GROUP_COLUMN) > 1:
        columns = {field: field if name == GROUP_COLUMN else name for field, name in columns.items()}
    classes = [column for column in written if _plain(column) in CLASS_NAMES]
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
    if "path" not in columns.values() or len(set(columns.values())) < len(written):
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
