"""The header of a list: which column holds the paths, which the classes, and which are ignored.

A list for everest names its columns as in `COLUMNS`. In a sheet of another program, the columns of paths and
classes are found by their usual names, and all other columns are ignored.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from everest.errors import DataError, RecipeError, did_you_mean

SEGMENT_COLUMNS: Final = ("start", "end", "start_frame", "end_frame")
GROUP_COLUMN: Final = "group"
COLUMNS: Final = ("path", "label", *SEGMENT_COLUMNS, GROUP_COLUMN)
HEAD_PREFIX: Final = "label."
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
    written: tuple[str, ...]  # the columns as the list names them
    names: tuple[str, ...]  # keys of `ListRow.values`: a name of COLUMNS, `label.NAME`, else as written

    @property
    def has_classes(self) -> bool:
        """Whether a column holds labels."""
        return any(name == "label" or name.startswith(HEAD_PREFIX) for name in self.names)

    @property
    def unassigned(self) -> list[str]:
        """The columns that may hold the classes of a list without labels, as written; `group` may, too."""
        pairs = zip(self.written, self.names, strict=True)
        return [column for column, name in pairs if name == GROUP_COLUMN or not is_known(name)]

    def notice(self) -> str | None:
        """A line about the columns of a sheet; None if there are only everest's columns."""
        pairs = list(zip(self.written, self.names, strict=True))
        parts = [
            f"{name} from the column '{column}'"
            for column, name in pairs
            if is_known(name) and _plain(column) != _plain(name)
        ]
        ignored = ", ".join(column for column, name in pairs if not is_known(name))
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
    named = {"label": ("--class-column ", class_column), GROUP_COLUMN: ("--group column:", group_column)}
    chosen = {name: pair for name, pair in named.items() if pair[1] is not None}
    for option, column in chosen.values():
        if column not in written:
            hint = did_you_mean(str(column), written) if is_header(rows[0]) else ""
            raise RecipeError(f"{option}{column}: no such column in {where}{hint}")
    if not is_header(rows[0]) and not chosen:
        return None
    names = [_plain(field) if _plain(field) in COLUMNS else field for field in written]
    classes = [column for column in written if _plain(column) in CLASS_NAMES]
    if "label" not in names and not any(name.startswith(HEAD_PREFIX) for name in names) and len(classes) == 1:
        names[written.index(classes[0])] = "label"
    for key, (_, column) in chosen.items():
        names = [f"{name} (not used)" if name == key else name for name in names]
        names[written.index(str(column))] = key
    paths = [column for column, name in zip(written, names, strict=True) if _plain(name) in PATH_NAMES]
    if "path" not in names and len(paths) == 1:
        names[written.index(paths[0])] = "path"
    if "path" not in names or len(set(names)) < len(names) or len(set(written)) < len(written):
        raise DataError(f"{where}: the header needs the column 'path', and every column once")
    for index, name in enumerate(names):
        values = [row[index] for row in rows[1:] if index < len(row) and row[index]]
        # It would be ignored, and whole videos read in place of their segments.
        is_time = values and None not in map(as_number, values)
        if not is_known(name) and _plain(name).startswith(("start", "end")) and is_time:
            raise DataError(
                f"{where}: unknown column '{name}', which may name a segment of each video; rename it to one "
                f"of {', '.join(SEGMENT_COLUMNS)}, or remove it"
            )
    return Header(where=where, written=tuple(written), names=tuple(names))


def _plain(field: str) -> str:
    return field.strip().lower().replace(" ", "_").replace("-", "_")


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
