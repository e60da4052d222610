"""Files that everest wrote and reads again: whatever is wrong in one is a single line that names it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from everest.errors import CheckpointError, RecipeError, UserError, shown
from everest.system.storage import Location
from everest.system.text import read_json

MOST_SHOWN: Final = 200  # letters of a reason
# What reading a value of another type, or one that is missing, may raise.
PROBLEMS: Final = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, csv.Error)


@contextmanager
def reading_own(path: Location, *, fix: str, error: type[UserError] = RecipeError) -> Iterator[None]:
    """Raise `error` for anything that fails while a file that everest wrote is read and understood.

    Its values are not checked one by one: only damage or an edit by hand makes them wrong.
    """
    try:
        yield
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except (*PROBLEMS, CheckpointError) as problem:
        if isinstance(problem, CheckpointError) and not str(problem).startswith(f"{path}: "):
            raise  # of another file
        reason = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
        reason = shown(reason.removeprefix(f"{path}: "), most=MOST_SHOWN)
        raise error(f"{path}: damaged ({reason}); {fix}") from problem


def read_own_json(path: Path, *, fix: str) -> dict[str, Any]:
    """The JSON object in a file that everest wrote."""
    with reading_own(path, fix=fix):
        return {**read_json(path)}
