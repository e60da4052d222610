"""Text for messages, strict JSON, and errors for damaged files that everest wrote."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from everest.errors import CheckpointError, RecipeError, UserError, shorten

if TYPE_CHECKING:  # a model alone reads no storage
    from everest.system.storage import Location

Value = TypeVar("Value")
MAX_REASON_LENGTH: Final = 200  # maximum number of characters of a reason in a message
# Errors that a missing value or a value of the wrong type may raise when it is read.
MALFORMED_ERRORS: Final = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, csv.Error)


def plural(count: int, noun: str) -> str:
    """`1 video`, `2 videos`, `1 class`, `2 classes`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def time_text(seconds: float) -> str:
    """Format a time in a suitable unit: `45 s`, `20 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: Python keeps the bytes of a name that is not UTF-8 (PEP 383)."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """Format a JSON document; ValueError if a number is not finite, which is a fault of the caller."""
    return json.dumps(document, indent=indent, allow_nan=False)


def parse_json(text: str | bytes, *, nan: bool = False) -> Any:
    """Parse a JSON document; ValueError if it is damaged, nested too deeply or has a number not finite.

    With `nan`, the numbers `NaN` and `Infinity` of other programs are accepted.
    """
    try:
        parse_constant = float if nan else _parse_finite
        return json.loads(text, parse_constant=parse_constant, parse_float=_parse_finite)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def read_json(path: Path, *, nan: bool = False) -> Any:
    """Read a JSON file; OSError if it cannot be read, ValueError if it is a pipe or `parse_json` fails."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    text = path.read_text(encoding="utf-8-sig")  # Windows programs write a byte order mark
    return parse_json(text, nan=nan)


def _parse_finite(text: str) -> float:
    """Parse a finite number; refuses `NaN` and `Infinity`, which Python's JSON reader accepts."""
    number = float(text)
    if text.endswith(("NaN", "Infinity")):
        raise ValueError(f"{text} is no JSON value")
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


def nonfinite_as_null(value: Any) -> Any:
    """Return a document of measurements with each number that is not finite replaced by None."""
    return to_jsonable_python(value, inf_nan_mode="null")


def validate(adapter: TypeAdapter[Value], value: Any) -> Value:
    """Convert a JSON value to the adapter's type; ValueError with the first problem and its key."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = shorten(".".join(map(str, first["loc"])))
        problem = shorten(first["msg"], most=MAX_REASON_LENGTH)
        raise ValueError(f"{key}: {problem}" if key else problem) from error


@contextmanager
def damage_errors(path: Location, *, fix: str, error: type[UserError] = RecipeError) -> Iterator[None]:
    """Raise `error` for anything that fails while a file that everest wrote is read and understood.

    The values are not checked one by one: only damage or an edit by hand can make them wrong.
    """
    try:
        yield
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except (*MALFORMED_ERRORS, CheckpointError) as problem:
        if isinstance(problem, CheckpointError) and not str(problem).startswith(f"{path}: "):
            raise  # it is about another file
        reason = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
        reason = shorten(reason.removeprefix(f"{path}: "), most=MAX_REASON_LENGTH)
        raise error(f"{path}: damaged ({reason}); {fix}") from problem


def load_json(path: Path, *, fix: str) -> dict[str, Any]:
    """Read the JSON object in a file that everest wrote."""
    with damage_errors(path, fix=fix):
        return {**read_json(path)}
