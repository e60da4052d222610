"""The known layouts of data sets (layouts.yaml), the search for their annotations, readers of formats."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import TypeAdapter

from everest.config.yaml import read_yaml
from everest.errors import DataError, RecipeError
from everest.lists.stage import LIST_FILES
from everest.lists.text import read_lines
from everest.system.text import read_json
from everest.video.folders import as_data_error

Sources = Mapping[str, Sequence[Path]]  # the annotation files by role
Entry = TypeVar("Entry")


class VideoRef(NamedTuple):
    """A file that may hold a sample: all of it, or the segment from start to end."""

    name: str  # without the suffix
    start: float | None = None  # seconds
    end: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None  # the first that is not part of it


@dataclass(frozen=True, slots=True)
class AnnotatedSample:
    """A sample as annotations name it."""

    refs: tuple[VideoRef, ...]  # in order of preference; the first that has a file is taken
    labels: tuple[int, ...] = ()  # one per head; empty if they are secret
    folders: frozenset[str] = frozenset()  # likely folders of its file, to choose among files of one name


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The annotations of a data set."""

    lists: Mapping[str, Sequence[AnnotatedSample]]  # by the list's name: train, val, test
    class_names: tuple[str, ...] = ()  # in the order of their labels


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set is published: an entry of layouts.yaml, which describes the keys."""

    name: str
    title: str
    expects: str
    needs: Mapping[str, str]
    may_have: Mapping[str, str] = field(default_factory=dict)
    column: str | None = None
    heads: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


TABLE: Final = Path(__file__).with_name("layouts.yaml")
LAYOUTS: Final = {
    layout.name: layout
    for layout in TypeAdapter(list[Layout]).validate_python(read_yaml(TABLE.read_text("utf-8"), str(TABLE)))
}
FOLDERS: Final = "folders"  # no annotations: everest.prepare.index.folder_samples
EXPECTATIONS: Final = "\n".join(  # a line for each layout with the files it expects
    [
        *(f"  {layout.name}: {layout.expects}" for layout in LAYOUTS.values()),
        f"  {FOLDERS}: a folder of videos for each class, or videos without classes",
    ]
)
_SUFFIXES: Final = (".txt", ".csv", ".json")
_TIME: Final = re.compile(r"(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(\.\d+)?)")


def find_layout(folder: Path, *, split: int) -> tuple[Layout, Sources] | None:
    """The layout of the annotations below a folder, and their files; None if there are no annotations.

    Args:
        split: of UCF101 and HMDB51, which have three.
    """
    files: list[Path] = []  # texts, tables and JSON documents at any depth, sorted by name
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        files += [Path(parent, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
    matches: list[tuple[Layout, Sources]] = []
    for layout in LAYOUTS.values():
        sources: dict[str, list[Path]] = {}
        for role, pattern in {**layout.needs, **layout.may_have}.items():
            fits = re.compile(pattern.replace("{split}", str(split))).fullmatch
            named = [file for file in files if fits(file.name)]
            sources[role] = [
                file for file in named if layout.column is None or layout.column in _columns(file)
            ]
        if all(sources[role] for role in layout.needs):
            matches.append((layout, sources))
    if len(matches) > 1:
        listed = ", ".join(layout.name for layout, _ in matches)
        raise RecipeError(
            f"{folder}: annotations of {listed} are below it; name the folder of one by --annotations"
        )
    return matches[0] if matches else None


def _columns(table: Path) -> list[str]:
    with as_data_error(table), table.open(encoding="utf-8-sig", errors="replace") as text:
        return text.readline(1000).strip().split(",")


def only(sources: Sources, role: str) -> Path | None:
    """The file for a role; None if there is none; DataError if there are several."""
    files = sources.get(role, ())
    if len(files) > 1:
        shown = ", ".join(map(str, files[:3]))
        raise DataError(
            f"{len(files)} files with the same annotations ({shown}); name the folder of one by --annotations"
        )
    return files[0] if files else None


def needed(sources: Sources, role: str) -> Path:
    """The file for a role that the layout `needs`."""
    file = only(sources, role)
    assert file is not None
    return file


def read_lists(
    sources: Sources, sample_of: Callable[[str, Any], AnnotatedSample]
) -> dict[str, list[AnnotatedSample]]:
    """The samples of the lists that have a file.

    Args:
        sample_of: makes a sample of the name of the list and an entry of the file, see `entries`.
    """
    files = {name: only(sources, name) for name in LIST_FILES}
    return {name: at_places(entries(file), partial(sample_of, name)) for name, file in files.items() if file}


def at_places(
    placed: Iterable[tuple[str, Entry]], sample_of: Callable[[Entry], AnnotatedSample]
) -> list[AnnotatedSample]:
    """The samples of entries; an error of one names its place, see `naming`."""
    samples = []
    for place, entry in placed:
        with naming(place):
            samples.append(sample_of(entry))
    return samples


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Raise missing fields and wrong values as DataErrors that name their place."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{place} has no field {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{place}: {error}") from error


def entries(file: Path) -> list[tuple[str, Any]]:
    """The lines of a text, the rows of a table or the objects of a JSON list, with their places."""
    if file.suffix == ".txt":
        return [(f"{file}:{number}", line.strip()) for number, line in read_lines(file)]
    if file.suffix == ".csv":
        try:
            with as_data_error(file), file.open(encoding="utf-8-sig", newline="") as text:
                rows = [
                    {
                        name: cell for name, cell in row.items() if cell is not None
                    }  # of a row that is too short
                    for row in csv.DictReader(text)
                ]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file}: not a table separated by commas ({error})") from error
    else:
        document = read_annotations(file)
        rows = document.get("clips") if isinstance(document, dict) else document
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file}: a list of objects is expected")
    return [(f"{file}: entry {number}", row) for number, row in enumerate(rows, start=1)]


def read_annotations(file: Path) -> Any:
    """The JSON document in a file; DataError if it cannot be read, or is not JSON."""
    try:
        with as_data_error(file):
            return read_json(file)
    except ValueError as error:
        raise DataError(f"{file}: not a JSON document ({error}); download it again") from error


def seconds_of(stamp: str) -> float:
    """The seconds of a time such as `00:01:02.34`; ValueError for any other text."""
    match = _TIME.fullmatch(stamp.strip())
    if match is None:
        raise ValueError(f"'{stamp}' is no time as 00:01:02.34")
    whole = int(match["hours"]) * 3600 + int(match["minutes"]) * 60
    return round(whole + float(match["seconds"]), 6)
