"""The paths in the files of a folder of several runs, if the folder was moved or copied."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from everest.errors import RecipeError
from everest.system.files import write_text
from everest.system.text import damage_errors, json_text, read_json

PATHS_FILE: Final = "paths.json"  # in a folder of several runs: the paths that its files may name it by
DEPTH: Final = 3  # of the deepest file below the folder that names paths


def record_path(folder: Path) -> None:
    """Add the present paths of a folder to its PATHS_FILE, before its files name them."""
    known = _read_paths(folder)
    paths = list(dict.fromkeys([*known, folder, folder.resolve()]))
    if paths != known:
        write_text(folder / PATHS_FILE, json_text([*map(str, paths)]) + "\n")


def _read_paths(folder: Path) -> list[Path]:
    """The paths in the PATHS_FILE of a folder; empty if it is missing or damaged."""
    file = folder / PATHS_FILE
    with suppress(RecipeError), damage_errors(file, fix=""):
        return [*map(Path, read_json(file))]
    return []


def moved(document: Any, file_folder: Path) -> Any:
    """Return a document in which paths inside a moved folder of runs are those of the folder as it is now.

    Args:
        document: the values of a JSON or YAML file; other texts, numbers and paths stay as they are.
        file_folder: the folder of that file.
    """
    file_folder = file_folder.absolute()
    near = (file_folder, *file_folder.parents)[: DEPTH + 1]
    folder = next((path for path in near if (path / PATHS_FILE).is_file()), None)
    if folder is None:
        return document
    paths = sorted(_read_paths(folder), key=lambda path: -len(path.parts))
    return document if paths in ([], [folder]) else _rename(document, paths, folder)


def move_files(old: Path, new: Path, document: Any) -> Any:
    """Move the files in a folder into another one; return a document with their paths there."""
    for file in filter(Path.is_file, [*old.rglob("*")]):
        path = new / file.relative_to(old)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
    return _rename(document, [old, old.resolve()], new)


def _rename(value: Any, paths: list[Path], folder: Path) -> Any:
    """Replace the first of the `paths` in each path by `folder`."""
    if isinstance(value, dict):
        return {key: _rename(each, paths, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_rename(each, paths, folder) for each in value]
    if not isinstance(value, str) or Path(value).is_relative_to(folder):
        return value
    old = next((path for path in paths if Path(value).is_relative_to(path)), None)
    return value if old is None else str(folder / Path(value).relative_to(old))
