"""The records of a file: a reader reads each one, counts it as left out, or names it in an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, Final

from everest.errors import first_names

LeftOut = Counter[str]  # the records that a file has and no bout comes from, by the reason

MOST_REASONS: Final = 6  # in a line
NO_EVENT: Final = "observation without an event"  # of which nothing could be read
REASONS: Final = (  # why a record or file cannot be read, by the type of the error; else the error's words
    (UnicodeDecodeError, "it is no text in UTF-8; save it in this encoding"),
    (JSONDecodeError, "damaged JSON: {}"),
    (KeyError, "{} is missing"),
    (OverflowError, "a number is too large for a time"),
    ((TypeError, AttributeError, IndexError), "unexpected structure; export the file again"),
)


def reason_of(error: Exception) -> str:
    """Why a record or a file cannot be read."""
    text = next((text for types, text in REASONS if isinstance(error, types)), "{}")
    return text.format(error)


@contextmanager
def in_record(name: str) -> Iterator[None]:
    """Name the record in an error of the block about its content."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name}: {reason_of(error)}") from error


def left_out_text(left_out: Mapping[str, int]) -> str:
    """The records of each reason, in a line: `region of the kind choices (2), row without a label (1)`."""
    reasons = [f"{reason} ({count})" for reason, count in sorted(left_out.items())]
    return first_names(reasons, MOST_REASONS)


def left_out_rows(left_out: Mapping[str, int]) -> list[dict[str, Any]]:
    """The same as JSON."""
    return [{"reason": reason, "count": count} for reason, count in sorted(left_out.items())]
