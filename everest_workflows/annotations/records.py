"""Records of a file: a reader reads each record, counts it as left out, or keeps why it cannot be read.

A record is an entry of a document, or a row of a table, whose separator and header are found here. A record
that cannot be read is an error only if it may concern the chosen videos and people.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final

from everest.errors import join_first

IsHeader = Callable[[Sequence[str]], bool]  # whether cells are the header of a kind of table
Row = tuple[int, list[str]]  # the number of a line, from 1, and its cells

MAX_REASONS: Final = 6  # reasons in one line
NO_EVENT: Final = "observation without an event"  # the reason of a valid record
ERROR_REASONS: Final = (  # reasons by type of error; other errors state their reason
    (UnicodeDecodeError, "it is no text in UTF-8; save it in this encoding"),
    (JSONDecodeError, "damaged JSON: {}"),
    (KeyError, "{} is missing"),
    (OverflowError, "a number is too large for a time"),
    ((TypeError, AttributeError, IndexError), "unexpected structure; export the file again"),
)
READING_ERRORS: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
SEPARATORS: Final = "\t;,"  # the comma is last: it may also be in a cell


@dataclass(slots=True, kw_only=True)
class Unread:
    """A record that cannot be read, with what is known of it; a reader adds what it learns."""

    videos: Sequence[str] = ()  # names in the file; empty: it may be of any video
    observer: str = ""
    subject: str | None = None  # None: it may be of any subject
    reason: str = ""


class LeftOut(Counter[str]):
    """The number of records that are not read, by reason; and the records that cannot be read."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts or {})
        self.unread: list[Unread] = []

    @contextmanager
    def reading(self, name: str, videos: Sequence[str] = (), observer: str = "") -> Iterator[Unread]:
        """Keep an error in the block about the content of a record, and skip the rest of the record."""
        record = Unread(videos=videos, observer=observer)
        try:
            yield record
        except READING_ERRORS as error:
            record.reason = ": ".join(filter(None, [name, error_reason(error)]))
            self.unread.append(record)


def error_reason(error: Exception) -> str:
    """Why a record or a file cannot be read."""
    text = next((text for types, text in ERROR_REASONS if isinstance(error, types)), "{}")
    return text.format(error)


@contextmanager
def record_errors(name: str) -> Iterator[None]:
    """Prefix errors in the block about the content of a record with the record's name."""
    try:
        yield
    except READING_ERRORS as error:
        raise ValueError(f"{name}: {error_reason(error)}") from error


@contextmanager
def line_errors(line_number: int, cells: Sequence[str] = (), header: Sequence[str] = ()) -> Iterator[None]:
    """Prefix errors in the block with the line number; refuse cells that do not fit a header.

    Further empty cells may follow.
    """
    with record_errors(f"line {line_number}"):
        if len(cells) < len(header) or any(cells[len(header) :]):
            problem = f"it has {len(cells)} fields, and the header {len(header)}"
            raise ValueError(f"{problem} (a field may be empty)")
        yield


def left_out_text(left_out: Mapping[str, int]) -> str:
    """The number of records by reason, in text: `region of the kind choices (2), row without a label (1)`."""
    reasons = [f"{reason} ({count})" for reason, count in sorted(left_out.items())]
    return join_first(reasons, MAX_REASONS)


def left_out_rows(left_out: Mapping[str, int]) -> list[dict[str, Any]]:
    """The number of records by reason, for JSON."""
    return [{"reason": reason, "count": count} for reason, count in sorted(left_out.items())]


def read_table(path: Path, is_header: IsHeader) -> tuple[list[list[str]], list[str], Iterator[Row]]:
    """Read the rows above the header of a table, the header, and an iterator over the rows below.

    Empty lines are skipped. ValueError if there is no header.
    """
    rows = _read_rows(path, is_header)
    above: list[list[str]] = []
    for _, cells in rows:
        if is_header(cells):
            return above, cells, rows
        above.append(cells)
    raise ValueError("no line with the names of the columns")


def _read_rows(path: Path, is_header: IsHeader) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separators = (sign for line in file for sign in SEPARATORS if is_header(split_cells(line, sign)))
        separator = next(separators, ",")
        file.seek(0)
        reader = csv.reader(file, delimiter=separator)
        yield from ((reader.line_num, cells) for cells in reader if any(cells))


def split_cells(line: str, separator: str) -> list[str]:
    """The cells of a line; csv.Error if the line is not part of a table."""
    return next(csv.reader([line], delimiter=separator), [])


def read_number(text: str) -> float:
    """The finite number in a cell; ValueError if the cell has none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        fix = "write decimals with a point" if "," in text else "write seconds such as 1.5"
        raise ValueError(f"{text[:20]!r} is no number; {fix}")
    return number
