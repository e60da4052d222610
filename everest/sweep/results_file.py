"""The file `results.json` of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic does not take typing's on Python 3.11

from everest.errors import RecipeError
from everest.system.files import write_text
from everest.system.json_text import json_text, read_json

RESULTS: Final = "results.json"
LARGEST: Final = 1e100  # our choice: means and intervals of larger numbers may overflow
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class Jobs(TypedDict):
    all: int
    finished: int


class SeedRow(TypedDict):
    seed: int
    gmacs: Number
    hours: Number
    metrics: dict[str, Number | None]


class ArmRows(TypedDict):
    arm: str
    overrides: dict[str, str]
    seeds: list[SeedRow]


class FailedJob(TypedDict):
    arms: list[str]
    seed: int
    job: str
    error: str


class Results(TypedDict):
    """The keys of a sweep's results that its report reads."""

    recipe: str
    summary: str
    stages: list[str]
    against: str
    equal: str
    metric: str
    jobs: Jobs
    arms: Annotated[list[ArmRows], Field(min_length=1)]
    failures: list[FailedJob]


_RESULTS: Final = TypeAdapter(Results)


def write_results(folder: Path, document: Mapping[str, Any]) -> None:
    """Write `results.json`."""
    write_text(folder / RESULTS, json_text(document, indent=2))


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json`.

    Raises:
        RecipeError: there is none, or it is damaged.
    """
    path = folder / RESULTS
    try:
        document = read_json(path)
        _RESULTS.validate_python(document, strict=True)
    except FileNotFoundError as error:
        raise RecipeError(f"{folder}: no {RESULTS}; name the folder of `everest sweep`") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecipeError(
            f"{path}: damaged ({place}: {first['msg']}); repeat the command of the sweep"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: damaged ({error}); repeat the command of the sweep") from error
    return document
