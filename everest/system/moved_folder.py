"""The paths in the files of a folder of several runs, if the folder was moved or copied."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from everest.errors import RecipeError
from everest.system.text import damage_errors, load_json

PROJECT_FILE: Final = "project.json"  # in a folder of several runs
FOLDERS_KEY: Final = "folders"  # in PROJECT_FILE: where the folder was when its files were written
DEPTH: Final = 3  # of the deepest file below the folder that names paths: folds/1/model


def moved(document: Any, place: Path) -> Any:
    """Return a document in which paths inside a moved folder of runs are those of the folder as it is now.

    Args:
        document: the values of a JSON or YAML file; other texts, numbers and paths stay as they are.
        place: the folder of that file.
    """
    place = place.absolute()
    near = (place, *place.parents)[: DEPTH + 1]
    folder = next((path for path in near if (path / PROJECT_FILE).is_file()), None)
    if folder is None:
        return document
    written: list[Path] = []
    file = folder / PROJECT_FILE
    with suppress(RecipeError), damage_errors(file, fix=""):  # a damaged one is reported where it is needed
        written = sorted(
            map(Path, load_json(file, fix="").get(FOLDERS_KEY, [])), key=lambda path: -len(path.parts)
        )
    return document if written in ([], [folder]) else _rename(document, written, folder)


def move_files(old: Path, new: Path, document: Any) -> Any:
    """Move the files in a folder into another one; return a document with their paths there."""
    for file in filter(Path.is_file, [*old.rglob("*")]):
        path = new / file.relative_to(old)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
    return _rename(document, [old, old.resolve()], new)


def _rename(value: Any, written: list[Path], folder: Path) -> Any:
    """Replace the first of the `written` folders in each path by `folder`."""
    if isinstance(value, dict):
        return {key: _rename(each, written, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_rename(each, written, folder) for each in value]
    if not isinstance(value, str) or Path(value).is_relative_to(folder):
        return value
    old = next((path for path in written if Path(value).is_relative_to(path)), None)
    return value if old is None else str(folder / Path(value).relative_to(old))
