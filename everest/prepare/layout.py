"""The annotations of a data set in one form, whatever their format, and readers of their files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from everest.errors import DataError
from everest.video.folders import as_data_error

Sources = Mapping[str, Sequence[Path]]  # the annotation files by role


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
    heads: Mapping[str, int] = field(default_factory=dict)  # classes of each of several labels
    settings: Mapping[str, Any] = field(default_factory=dict)  # further keys of a recipe's `data`


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set is published."""

    name: str
    title: str
    expects: str  # the annotation files and video files, for messages
    # Pattern of a file name by role; `{split}` is the number of the split.
    needs: Mapping[str, str]
    may_have: Mapping[str, str] = field(default_factory=dict)
    holds: Callable[[Path], bool] = lambda file: True  # whether a file with a matching name belongs to it
    read: Callable[[Sources], Annotations]


def only(sources: Sources, role: str) -> Path | None:
    """The file for a role; None if there is none.

    Raises:
        DataError: there are several.
    """
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


def read_json(file: Path) -> Any:
    """The JSON document in a file.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        with as_data_error(file):
            return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON document ({error}); download it again") from error


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        DataError: the file cannot be read, or is not a table.
    """
    try:
        with as_data_error(file), file.open(encoding="utf-8-sig", newline="") as text:
            return list(csv.DictReader(text))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a table separated by commas ({error})") from error


@contextmanager
def naming_entry(file: Path, number: int) -> Iterator[None]:
    """Raise missing fields and wrong values as DataErrors that name the entry of `file` (from 1)."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{file}: entry {number} has no field {error}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: entry {number}: {error}") from error


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names; a name of several labels gets the label appended. FineGym288 has three such pairs."""
    count = Counter(names)
    return tuple(f"{name} #{label}" if count[name] > 1 else name for label, name in enumerate(names))
