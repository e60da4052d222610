"""The header of a list: which column holds the paths, which the classes, and which are ignored.

A list for everest names its columns as in `COLUMNS`. In a sheet of another program, the columns of paths and
classes are found by their usual names, and all other columns are ignored.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from everest.errors import DataError, RecipeError, did_you_mean
from everest.video.folders import VIDEO_SUFFIXES

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
SIMILAR: Final = 0.8  # of two names, at which one may be a misspelling of the other


def is_known(column: str) -> bool:
    """Whether training reads a column."""
    return column in COLUMNS or column.startswith(HEAD_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The columns of a list."""

    where: str  # file:line, for messages
    written: tuple[str, ...]  # the columns as the list names them
    names: tuple[str, ...]  # keys of `ListRow.values`: a name of COLUMNS, `label.NAME`, else as written
    class_columns: tuple[str, ...]  # as written; several if it is not clear which holds the classes

    @property
    def unassigned(self) -> list[str]:
        """The columns that may hold the classes of a list without labels, as written; `group` may, too."""
        pairs = zip(self.written, self.names, strict=True)
        return [column for column, name in pairs if name == GROUP_COLUMN or not is_known(name)]

    def notice(self, *, used: Collection[str] = ()) -> str | None:
        """A line about the columns of a sheet but those `used`; None if there are only everest's columns."""
        renamed = [
            f"{what} from the column '{self.written[self.names.index(name)]}'"
            for name, what in (("path", "paths"), ("label", "labels"))
            if name in self.names and self.written[self.names.index(name)].lower() != name
        ]
        pairs = zip(self.written, self.names, strict=True)
        ignored = ", ".join(column for column, name in pairs if not is_known(name) and column not in used)
        parts = [*renamed, *([f"ignored columns: {ignored}"] if ignored else [])]
        return f"{self.where.rpartition(':')[0]}: {'; '.join(parts)}" if parts else None

    @property
    def has_classes(self) -> bool:
        """Whether a column holds labels."""
        return any(name == "label" or name.startswith(HEAD_PREFIX) for name in self.names)

    @property
    def is_unclear(self) -> bool:
        """Whether several columns may hold the classes."""
        return not self.has_classes and bool(self.class_columns)

    def no_classes(self, file: object) -> DataError:
        """The error for a list that is read with labels and has no column of classes."""
        others = self.class_columns or tuple(self.unassigned)
        listed = ", ".join(others) or "its columns"
        found = "several columns may hold" if self.is_unclear else "no column is known to hold"
        column = self.class_columns[0] if self.class_columns else others[0] if len(others) == 1 else "NAME"
        return DataError(
            f"{self.where}: {found} the classes ({listed}); rename one to 'label', or run "
            f"`everest prepare split {shlex.quote(str(file))} --class-column {shlex.quote(column)}`, "
            "which writes lists"
        )


def is_header(fields: Sequence[str]) -> bool:
    """Whether the fields of the first line are names of columns."""
    names = {_plain(field) for field in fields}
    return bool(
        names & {"path", "label"} or (names & PATH_NAMES and (names & CLASS_NAMES or len(fields) > 2))
    )


def looks_like_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line of a list is a header with an unknown column: its label is in no other line."""
    first, *others = rows
    labels = {row[-1] for row in others}
    is_name = len(first) == 2 and first[1] not in labels and as_number(first[1]) is None
    return bool(others) and is_name and _plain(first[0]) in PATH_NAMES


def find_header(
    where: str, rows: Sequence[Sequence[str]], *, class_column: str | None = None
) -> Header | None:
    """Reads the header in the first row of a list; None if the list has none.

    Args:
        where: file:line of the first row.
        rows: the fields of all lines.
        class_column: the column of classes, as written in the sheet; None finds it by its name.
    """
    written = [field or f"column {number}" for number, field in enumerate(rows[0], start=1)]
    names = [_plain(field) if _plain(field) in COLUMNS else field for field in written]
    if names.count(GROUP_COLUMN) > 1:  # only the column of exactly this name; others are ignored
        pairs = zip(written, names, strict=True)
        names = [field if name == GROUP_COLUMN else name for field, name in pairs]
    paths = [field for field in written if _plain(field) in PATH_NAMES]
    classes = tuple(field for field in written if _plain(field) in CLASS_NAMES)
    if not is_header(rows[0]) and class_column not in written:
        if class_column is not None:
            raise RecipeError(f"--class-column {class_column}: no column of {where.rpartition(':')[0]}")
        return None
    if "path" not in names:
        column = _path_column(where, written, paths, rows[1:])
        names[written.index(column)] = "path"
    if class_column is not None:
        if class_column not in written:
            hint = did_you_mean(class_column, written)
            raise RecipeError(f"--class-column {class_column}: no such column in {where}{hint}")
        names = [f"{name} (not used)" if name == "label" else name for name in names]
        names[written.index(class_column)] = "label"
    elif "label" in names or any(name.startswith(HEAD_PREFIX) for name in names):
        classes = ()
    elif len(classes) == 1:
        names[written.index(classes[0])] = "label"
    is_repeated = len(set(names)) < len(names) or len(set(written)) < len(written)
    if is_repeated or "path" not in names:
        raise DataError(f"{where}: the header needs the column 'path', and every column once")
    header = Header(where=where, written=tuple(written), names=tuple(names), class_columns=classes)
    _refuse_misspelled(header, rows[1:])
    return header


def _path_column(
    where: str, written: Sequence[str], paths: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Returns the column of paths: by its name, or else the only one that holds names of video files."""
    if not paths:
        suffixes = [
            {PurePath(row[index]).suffix.lower() for row in rows if index < len(row)}
            for index in range(len(written))
        ]
        pairs = zip(written, suffixes, strict=True)
        paths = [column for column, found in pairs if found and found <= VIDEO_SUFFIXES]
    if len(paths) == 1:
        return paths[0]
    found = f"; {' and '.join(paths)} may both be that" if paths else ""
    raise DataError(
        f"{where}: the header needs the column 'path', and every column once{found}; rename the column "
        "that holds the paths of the videos to 'path'"
    )


def _refuse_misspelled(header: Header, rows: Sequence[Sequence[str]]) -> None:
    """Raise DataError for a column of numbers that may be a misspelled segment: it must not be ignored."""
    for index, name in enumerate(header.names):
        if is_known(name):
            continue
        absent = [column for column in SEGMENT_COLUMNS if column not in header.names]
        meant = difflib.get_close_matches(_plain(name), absent, n=1, cutoff=SIMILAR)
        meant = meant or [column for column in absent[:2] if _plain(name).startswith(f"{column}_")]
        values = [row[index] for row in rows if index < len(row) and row[index]]
        if meant and values and None not in map(as_number, values):
            raise DataError(
                f"{header.where}: unknown column '{name}'; did you mean '{meant[0]}'? Other columns are "
                "ignored, but this one may name a segment of each video: rename or remove it"
            )


def _plain(field: str) -> str:
    return field.strip().lower().replace(" ", "_").replace("-", "_")


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
