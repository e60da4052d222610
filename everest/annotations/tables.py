"""Tables in text files: their separator, their header, and what is wrong in which line."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SEPARATORS: Final = "\t;,"  # a comma may be in a cell, too

IsHeader = Callable[[Sequence[str]], bool]  # whether the cells of a line are the columns of a kind of table
Row = tuple[int, list[str]]  # the number of a line, from 1, and its cells


def read_table(path: Path, is_header: IsHeader) -> tuple[list[list[str]], list[str], Iterator[Row]]:
    """Read what is above the header of a table, the header, and further rows one by one, without empty lines.

    ValueError if it has no header.
    """
    rows = _rows(path, is_header)
    above: list[list[str]] = []
    for _, cells in rows:
        if is_header(cells):
            return above, cells, rows
        above.append(cells)
    raise ValueError("no line with the names of the columns")


def _rows(path: Path, is_header: IsHeader) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separators = (sign for line in file for sign in SEPARATORS if is_header(cells_of(line, sign)))
        separator = next(separators, ",")
        file.seek(0)
        reader = csv.reader(file, delimiter=separator)
        yield from ((reader.line_num, cells) for cells in reader if any(cells))


def cells_of(line: str, separator: str) -> list[str]:
    """The cells of a line; csv.Error if it is none of a table."""
    return next(csv.reader([line], delimiter=separator), [])


@contextmanager
def in_line(number: int, cells: Sequence[str] = (), header: Sequence[str] = ()) -> Iterator[None]:
    """Name the line in a ValueError or OverflowError of the block, and refuse cells that do not fit a header.

    Cells after the last column may be empty.
    """
    try:
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise ValueError(f"it has {len(cells)} fields, and the header {len(header)}")
        yield
    except (ValueError, OverflowError) as error:  # of a number that is too large for a time
        raise ValueError(f"line {number}: {error}") from error


def number_in(text: str) -> float:
    """The finite number of a cell; ValueError if it has none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        fix = "write decimals with a point" if "," in text else "write seconds such as 1.5"
        raise ValueError(f"{text[:20]!r} is no number; {fix}")
    return number
