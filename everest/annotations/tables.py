"""Tables in text files: their separator, their header, and what is wrong in which line."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

SEPARATORS: Final = "\t;,"  # a comma may be in a cell, too

IsHeader = Callable[[Sequence[str]], bool]  # whether the cells of a line are the columns of a kind of table


class Table(NamedTuple):
    """A table that is read line by line, without empty lines."""

    above: list[list[str]]  # the lines above the header
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]  # each after the number of its line, from 1


def read_table(path: Path, is_header: IsHeader) -> Table:
    """Read a table up to its header; ValueError if it has none."""
    lines = _lines(path, is_header)
    above: list[list[str]] = []
    for _, cells in lines:
        if is_header(cells):
            return Table(above, cells, lines)
        above.append(cells)
    raise ValueError("no line with the names of the columns")


def _lines(path: Path, is_header: IsHeader) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separators = (each for line in file for each in SEPARATORS if is_header(cells_of(line, each)))
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
