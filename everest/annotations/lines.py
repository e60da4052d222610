"""Lines of an annotation file: their separator, the numbers of wrong ones, and the numbers in their cells."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

SEPARATORS: Final = "\t;,"  # of tables; a comma may be in a cell, too


@contextmanager
def in_line(number: int, fields: Sequence[str] = (), names: Sequence[str] = ()) -> Iterator[None]:
    """Name the line in a ValueError or OverflowError of the block; the first line is 1.

    Args:
        fields: the cells of the line; they may not be fewer than the columns, by their names.
    """
    try:
        if len(fields) < len(names):
            raise ValueError(f"it has {len(fields)} fields, and the header {len(names)}")
        yield
    except (ValueError, OverflowError) as error:  # of a number that is too large for a time
        raise ValueError(f"line {number}: {error}") from error


def fields_of(line: str, separator: str) -> list[str]:
    """The cells of a line; csv.Error if it is none of a table."""
    return next(csv.reader([line], delimiter=separator), [])


def separator_of(line: str, is_header: Callable[[Sequence[str]], object]) -> str:
    """The separator with which a line is a header; of another line the first that it has, else a comma."""
    separators = [each for each in SEPARATORS if each in line] or [","]
    return next((each for each in separators if is_header(fields_of(line, each))), separators[0])


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
