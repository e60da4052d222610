"""What the annotations of a data set say, whatever their format, and how their files are opened."""

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

Sources = Mapping[str, Sequence[Path]]  # the files of annotations by what they are for


class VideoRef(NamedTuple):
    """Where a sample may be: in a file of this name, whole or from a start to an end."""

    name: str  # without the suffix
    start: float | None = None  # seconds
    end: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None  # the first that does not belong to it


@dataclass(frozen=True, slots=True)
class AnnotatedSample:
    """A sample as annotations name it."""

    places: tuple[VideoRef, ...]  # the best first; the first that has a file is taken
    labels: tuple[int, ...] = ()  # one a head; empty where they are kept secret
    folders: frozenset[str] = frozenset()  # that its file is likely in; they tell files of one name apart


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """All that the annotations of a data set say."""

    lists: Mapping[str, Sequence[AnnotatedSample]]  # by the list's name: train, val, test
    class_names: tuple[str, ...] = ()  # in the order of their labels
    heads: Mapping[str, int] = field(default_factory=dict)  # classes of each of several labels
    settings: Mapping[str, Any] = field(default_factory=dict)  # what a recipe's `data` has to say besides


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set is published."""

    name: str
    title: str
    expects: str  # the files of annotations and of videos, for messages
    # Pattern of a file's name by what it is for; `{split}` is the number of the split.
    needs: Mapping[str, str]
    may_have: Mapping[str, str] = field(default_factory=dict)
    holds: Callable[[Path], bool] = lambda file: True  # whether a file of a fitting name is one of it
    read: Callable[[Sources], Annotations]


def only(sources: Sources, role: str) -> Path | None:
    """The file for `role`, None where there is none.

    Raises:
        DataError: several are there.
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
    """The document in a file.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        with as_data_error(file):
            return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON document ({error}); download it again") from error


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        DataError: it cannot be read, or is no such table.
    """
    try:
        with as_data_error(file), file.open(encoding="utf-8-sig", newline="") as text:
            return list(csv.DictReader(text))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a table separated by commas ({error})") from error


@contextmanager
def naming_entry(file: Path, number: int) -> Iterator[None]:
    """Tell which entry of `file` (from 1) lacks a field, or has a value that cannot be meant."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{file}: entry {number} has no field {error}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: entry {number}: {error}") from error


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Class names; those of several labels are followed by the label. FineGym288 has three such pairs."""
    count = Counter(names)
    return tuple(f"{name} #{label}" if count[name] > 1 else name for label, name in enumerate(names))
