"""The paths in the files of a folder of several runs, if the folder was moved or copied."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from everest.errors import RecipeError
from everest.system.files import write_text
from everest.system.text import damage_errors, json_text, read_json

PLACES_FILE: Final = "places.json"  # in a folder of several runs: the paths that its files may name it by
DEPTH: Final = 3  # of the deepest file below the folder that names paths


def record_place(folder: Path) -> None:
    """Add the present paths of a folder to its PLACES_FILE, before its files name them."""
    known = _read_places(folder)
    places = list(dict.fromkeys([*known, folder, folder.resolve()]))
    if places != known:
        write_text(folder / PLACES_FILE, json_text([*map(str, places)]) + "\n")


def _read_places(folder: Path) -> list[Path]:
    """The paths in the PLACES_FILE of a folder; empty if it is missing or damaged."""
    file = folder / PLACES_FILE
    with suppress(RecipeError), damage_errors(file, fix=""):
        return [*map(Path, read_json(file))]
    return []


def moved(document: Any, place: Path) -> Any:
    """Return a document in which paths inside a moved folder of runs are those of the folder as it is now.

    Args:
        document: the values of a JSON or YAML file; other texts, numbers and paths stay as they are.
        place: the folder of that file.
    """
    place = place.absolute()
    near = (place, *place.parents)[: DEPTH + 1]
    folder = next((path for path in near if (path / PLACES_FILE).is_file()), None)
    if folder is None:
        return document
    places = sorted(_read_places(folder), key=lambda path: -len(path.parts))
    return document if places in ([], [folder]) else _rename(document, places, folder)


def move_files(old: Path, new: Path, document: Any) -> Any:
    """Move the files in a folder into another one; return a document with their paths there."""
    for file in filter(Path.is_file, [*old.rglob("*")]):
        path = new / file.relative_to(old)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
    return _rename(document, [old, old.resolve()], new)


def _rename(value: Any, places: list[Path], folder: Path) -> Any:
    """Replace the first of the `places` in each path by `folder`."""
    if isinstance(value, dict):
        return {key: _rename(each, places, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_rename(each, places, folder) for each in value]
    if not isinstance(value, str) or Path(value).is_relative_to(folder):
        return value
    old = next((path for path in places if Path(value).is_relative_to(path)), None)
    return value if old is None else str(folder / Path(value).relative_to(old))
