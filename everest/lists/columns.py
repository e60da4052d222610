"""Rows of a list of videos, read from a text file or from the index of shards.

A line is `path label`, separated by a tab, a comma or a space; paths with spaces are quoted if a space
separates. The text is UTF-8.

A header is optional. It names the columns of `COLUMNS` and a column `label.NAME` for each of several heads;
other columns are ignored. In a sheet of another program, the columns of paths and classes are found by their
usual names. Semicolons may also separate a list that has a header.

Shards are tar files of WebDataset's layout with videos. The index of a list `train.csv`, `train.index.json`,
is next to them. It has a row for every line of the list, with the same columns and in the same order, so that
a run over shards samples the same clips as a run over the files. A row also names the tar file and the bytes
of its video.
"""

from __future__ import annotations

import csv
import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from everest.errors import DataError, RecipeError, did_you_mean, shorten
from everest.system.storage import Location
from everest.system.text import damage_errors, parse_json, plural
from everest.video.folders import as_data_error, not_found_text, refuse_video
from everest.video.source import ShardMember, video_version

SEGMENT_COLUMNS: Final = ("start", "end", "start_frame", "end_frame")
GROUP_COLUMN: Final = "group"
COLUMNS: Final = ("path", "label", *SEGMENT_COLUMNS, GROUP_COLUMN)
HEAD_PREFIX: Final = "label."
MIN_SIMILARITY: Final = 0.8  # heuristic: similarity from which a name may be a misspelling of another
# Heuristic: how sheets name their columns of paths and of classes, in lower case and without spaces.
PATH_NAMES: Final = frozenset(
    {"file", "filename", "file_name", "filepath", "file_path", "full_path", "movie", "movie_path"}
    | {f"{what}{part}" for what in ("video", "clip") for part in ("", "_file", "_name", "_path", "path")}
)
CLASS_NAMES: Final = frozenset(
    {"class", "class_name", "classname", "category", "action", "activity", "behavior", "behaviour"}
)
# Each separator has the characters to strip from a line (None: all white space): the tab at the end of a
# line may end an empty cell.
_SEPARATORS: Final = (("\t", None), ("\t", " "), (",", None), (" ", None))
_SHEET_SEPARATOR: Final = (";", " ")  # for sheets with decimal commas; only if the list has a header
INDEX_SUFFIX: Final = ".index.json"
INDEX_HEADER: Final = {"format": "everest-shards", "version": 1}  # how the index of shards begins
# The keys for the shard, first byte and size of a sample's video; all other keys are columns.
_MEMBER_KEYS: Final = ("tar", "offset", "size")
_SHARDS_FIX: Final = "copy it again, or make the shards again with --overwrite"


@dataclass(frozen=True, slots=True)
class ListRow:
    """A line of a list."""

    where: str  # file:line, for messages
    values: dict[str, str]  # nonempty values by column
    text: str  # the line as written
    member: ShardMember | None = None  # the video, if it is in a shard
    header: Header | None = None  # header of the list


# Columns of a sheet that a user chooses, by their role: `label` or `group`. Others are found by their names.
ChosenColumns = Mapping[str, str]
BY_NAME: Final[ChosenColumns] = {}


def read_list(source: Location) -> list[ListRow] | None:
    """The rows of a list, or of the index of shards; None for a folder. DataError for a damaged file."""
    with as_data_error(source):
        if not source.exists():
            raise DataError(f"{not_found_text(source)}; set data.root (in most commands: --data DIR)")
        index = find_index(source)
        return read_index(index) if index else read_rows(source) if source.is_file() else None


def read_rows(file: Location, chosen: ChosenColumns = BY_NAME) -> list[ListRow]:
    """Read the rows of a list; DataError if the list is empty or its lines have different fields."""
    lines = read_lines(file)
    if not lines:
        raise DataError(f"{file}: the list is empty; it needs a line `path label` for every video")
    for number, line in lines:
        if line.lstrip().startswith("#"):
            raise DataError(
                f"{file}:{number}: {quote(line)} looks like a comment, and a list has none; remove the line "
                "(a path that begins with # is written ./#…)"
            )
    rows_of_fields = _split_into_fields(file, lines)
    header = find_header(f"{file}:{lines[0][0]}", rows_of_fields, chosen)
    columns: Sequence[str] = COLUMNS[: min(max(map(len, rows_of_fields)), 2)]
    if header is not None:
        columns = list(header.columns.values())
        lines = lines[1:]
        rows_of_fields = rows_of_fields[1:]
    if not lines:
        raise DataError(f"{file}: the list has a header and no line under it; add one for every video")
    rows = []
    for (number, line), fields in zip(lines, rows_of_fields, strict=True):
        if len(fields) != len(columns):
            raise DataError(
                f"{file}:{number}: {plural(len(fields), 'field')} where {', '.join(columns)} are expected; "
                "quote paths with spaces, or separate by tabs; further columns need a header; the line is "
                f"{quote(line)}"
            )
        values = {column: value for column, value in zip(columns, fields, strict=True) if value}
        rows.append(ListRow(f"{file}:{number}", values, line, header=header))
    return rows


def read_lines(file: Location) -> list[tuple[int, str]]:
    """The nonblank lines of a text file, numbered from 1; DataError if it is a video or not UTF-8."""
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


def quote(line: str) -> str:
    """A line in quotes for a message, shortened in the middle if it is long."""
    return f"'{shorten(line.strip())}'"


def _split_into_fields(file: Location, lines: Sequence[tuple[int, str]]) -> list[list[str]]:
    """The fields of all lines, divided by a separator that gives each line the same number, at least 2."""
    separators: Sequence[tuple[str, str | None]] = _SEPARATORS
    if ";" in lines[0][1]:
        (names,) = _parse(file, lines[:1], *_SHEET_SEPARATOR)
        separators = (_SHEET_SEPARATOR,) if len(names) > 1 and is_header(names) else _SEPARATORS
    by_rank: dict[
        int, list[list[str]]
    ] = {}  # the first rows of each rank: all together would fill the memory
    for separator, ends in separators:
        rows = _parse(file, lines, separator, ends)
        lengths = set(map(len, rows))
        if lengths == {1}:
            rank = 3
        elif len(lengths) > 1:
            rank = 2
        else:  # paths may contain commas: prefer a separator whose last field is a number
            rank = 0 if rows[-1][-1].isdigit() else 1
        by_rank.setdefault(rank, rows)
        if rank == 0:
            break
    return by_rank[min(by_rank)]


def _parse(
    file: Location, lines: Sequence[tuple[int, str]], separator: str, ends: str | None
) -> list[list[str]]:
    """Divide lines into fields; `ends` are the characters to remove from both ends of a line."""
    rows = []
    for line_number, line in lines:
        try:
            (fields,) = csv.reader([line.strip(ends)], delimiter=separator, skipinitialspace=True)
        except csv.Error as error:  # a field of more than 131072 characters
            raise DataError(
                f"{file}:{line_number}: {error}; a line is `path label`, this is {quote(line)}"
            ) from error
        rows.append([field.strip() for field in fields])
    return rows


def is_used_column(column: str) -> bool:
    """Whether training reads a column."""
    return column in COLUMNS or column.startswith(HEAD_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The columns of a list."""

    where: str  # file:line, for messages
    # From a column's spelling to its key in `ListRow.values`: of COLUMNS, `label.NAME`, or the same spelling.
    columns: Mapping[str, str]

    @property
    def has_classes(self) -> bool:
        """Whether a column holds labels."""
        return any(map(_is_label_column, self.columns.values()))

    def notice(self) -> str | None:
        """A line about renamed and ignored columns of a sheet; None if all have everest's names."""
        changes = [
            f"{name} from the column '{column}'"
            for column, name in self.columns.items()
            if is_used_column(name) and _normalize(column) != _normalize(name)
        ]
        ignored = ", ".join(column for column, name in self.columns.items() if not is_used_column(name))
        changes += [f"ignored columns: {ignored}"] if ignored else []
        return f"{self.where.rpartition(':')[0]}: {'; '.join(changes)}" if changes else None

    def missing_classes_problem(self, file: object) -> str | None:
        """The problem that no column is known to hold classes; None if no other column may hold them."""
        columns = self.columns.items()
        others = [column for column, name in columns if name == GROUP_COLUMN or not is_used_column(name)]
        if self.has_classes or not others:
            return None
        return (
            f"{self.where}: no column is known to hold the classes ({', '.join(others)}); rename one to "
            f"'label', or run `everest prepare split {shlex.quote(str(file))} --class-column NAME`, which "
            "writes lists"
        )


def is_header(fields: Sequence[str]) -> bool:
    """Whether the fields of the first line are names of columns."""
    names = {_normalize(field) for field in fields}
    return bool(
        names & {"path", "label"} or (names & PATH_NAMES and (names & CLASS_NAMES or len(fields) > 2))
    )


def find_header(where: str, rows: Sequence[Sequence[str]], chosen: ChosenColumns) -> Header | None:
    """Read the header in the first of the `rows` of a list, at file:line `where`; None if it has none.

    RecipeError for a chosen column that is missing or holds labels; DataError for other wrong names.
    """
    names = [field or f"column {number}" for number, field in enumerate(rows[0], start=1)]
    options = {"label": "--class-column ", GROUP_COLUMN: "--group column:"}
    for role, column in chosen.items():
        if column not in names:
            hint = did_you_mean(column, names) if is_header(rows[0]) else ""
            raise RecipeError(f"{options[role]}{column}: no such column in {where}{hint}")
    if not is_header(rows[0]) and not chosen:
        return None
    group = chosen.get(GROUP_COLUMN)
    others = {role: column for role, column in chosen.items() if role != GROUP_COLUMN}
    if group is not None and _is_label_column(_find_roles(names, others)[group]):
        raise RecipeError(f"--group column:{group}: holds the labels in {where}; name another column")
    columns = _find_roles(names, chosen)
    if "path" not in columns.values() or len(set(columns.values())) < len(names):
        fix = "; `everest prepare index FOLDER` makes lists of Kinetics" if "youtube_id" in names else ""
        raise DataError(f"{where}: the header needs the column 'path', and every column once{fix}")
    # A column of numbers resembles an absent time column: ignoring it would read whole videos, not segments.
    absent = [column for column in SEGMENT_COLUMNS if column not in columns.values()]
    prefixes = tuple(f"{column}_" for column in ("start", "end") if column in absent)
    for index, name in enumerate(columns.values()):
        normalized = _normalize(name)
        similar = difflib.get_close_matches(normalized, absent, cutoff=MIN_SIMILARITY)
        is_similar = similar or normalized.startswith(prefixes)
        values = [row[index] for row in rows[1:] if index < len(row) and row[index]]
        are_times = values and None not in map(parse_number, values)
        if not is_used_column(name) and is_similar and are_times:
            raise DataError(
                f"{where}: unknown column '{name}', which may name a segment of each video; rename it to one "
                f"of {', '.join(SEGMENT_COLUMNS)}, or remove it"
            )
    return Header(where=where, columns=columns)


def _find_roles(names: Sequence[str], chosen: ChosenColumns) -> dict[str, str]:
    """The role of each column: one of `COLUMNS`, chosen or found by name; other columns keep their name."""
    roles: dict[str, str] = {}
    has_groups = names.count(GROUP_COLUMN) or sum(_normalize(name) == GROUP_COLUMN for name in names) > 1
    for name in names:
        role = _normalize(name)
        is_ignored = role == GROUP_COLUMN != name and has_groups  # the column of exactly this name counts
        roles[name] = role if role in COLUMNS and not is_ignored else name
        if roles[name] in chosen:
            roles[name] = f"{role} (not used)"
    roles |= {column: role for role, column in chosen.items()}
    classes = [name for name in names if _normalize(name) in CLASS_NAMES]
    if len(classes) == 1 and not any(map(_is_label_column, roles.values())):
        roles[classes[0]] = "label"
    paths = [name for name, role in roles.items() if _normalize(role) in PATH_NAMES]
    if len(paths) == 1 and "path" not in roles.values():
        roles[paths[0]] = "path"
    return roles


def _is_label_column(name: str) -> bool:
    return name == "label" or name.startswith(HEAD_PREFIX)


def _normalize(field: str) -> str:
    return field.strip().lower().replace(" ", "_").replace("-", "_")


def parse_number(text: str) -> float | None:
    """The value of a text that is a number, as `float` reads it; else None."""
    try:
        return float(text)
    except ValueError:
        return None


def find_index(source: Location) -> Location | None:
    """The index at a path: the path itself, the only index in a folder, or None; DataError for several."""
    if source.name.endswith(INDEX_SUFFIX):
        return source
    if not source.is_dir():
        return None
    names = sorted(path.name for path in source.iterdir() if path.name.endswith(INDEX_SUFFIX))
    if len(names) > 1:
        raise DataError(f"{source}: holds the shards of several lists; name one of {', '.join(names)}")
    return source / names[0] if names else None


def refuse_shards(source: Location) -> None:
    """Raise DataError for an index of shards, or a folder with one, where videos themselves are needed."""
    if find_index(source):
        raise DataError(f"{source}: an index of shards; name the list or folder that they were made from")


def read_index(file: Location) -> list[ListRow]:
    """Read the rows of an index, each with its part of a shard; DataError if index or shards are damaged."""
    folder = file.parent.absolute()
    rows = []
    with damage_errors(file, fix=_SHARDS_FIX, error=DataError):
        with as_data_error(file):
            document = parse_json(file.read_text(encoding="utf-8"))
        if {key: document[key] for key in INDEX_HEADER} != INDEX_HEADER or not document["samples"]:
            raise ValueError("no index of `everest prepare shard`, or one of another version")
        sizes = {shard["file"]: shard["bytes"] for shard in document["shards"]}
        for index, sample in enumerate(document["samples"]):
            values = {key: text for key, text in sample.items() if key not in _MEMBER_KEYS}
            tar, offset, size = (sample[key] for key in _MEMBER_KEYS)
            is_inside = 0 <= offset <= offset + size <= sizes[tar]
            if not is_inside or not all(isinstance(text, str) for text in values.values()):
                raise ValueError(f"sample {index} is not inside its shard, or has a value that is not text")
            member = ShardMember(folder / tar, offset, size, sample["path"])
            rows.append(ListRow(f"{file}: sample {index}", values, json.dumps(values), member))
        for name, expected in sizes.items():
            try:
                size = video_version(folder / name)[0]
                problem = f"{size} bytes"
            except OSError as error:
                size, problem = None, error.strerror or "cannot be read"
            if size not in (expected, -1):  # -1: the storage does not report the size
                raise DataError(
                    f"{folder / name}: {problem} where {file} expects {expected} bytes; {_SHARDS_FIX}"
                )
    return rows
