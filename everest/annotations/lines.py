"""Lines of an annotation file: their problems are named by their numbers, and their cells hold numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_line(number: int) -> Iterator[None]:
    """Name the line in a ValueError or OverflowError of the block; the first line is 1."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"line {number}: a number is too large for a time") from error
    except ValueError as error:
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
