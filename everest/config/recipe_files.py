"""Finds recipes: the shipped ones, the user's files, and the bases that they name.

This file does not need torch, so that `everest recipes list` answers at once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal

from everest.config.yaml import read_yaml
from everest.errors import MAX_SHOWN_OF_PATH, RecipeError, shorten, unknown_name
from everest.system.moved_folder import moved

SUFFIXES: Final = (".yaml", ".yml")
_read_once = cache(read_yaml)  # the paper's tables read the same four recipes 70 times


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """The text of a recipe and its origin."""

    name: str
    label: str  # the file's name in messages
    text: str
    folder: Path | None  # a `base:` path is relative to it; None: shipped

    @property
    def summary(self) -> str:
        """The file's own `summary`, if it has one."""
        return str(self.values().get("summary", ""))

    def values(self) -> dict[str, Any]:
        """The document, which must be a mapping; an empty file sets nothing. See `moved` for its paths."""
        document = copy.deepcopy(_read_once(self.text, self.label))
        if document is None:
            return {}
        if not isinstance(document, dict):
            raise RecipeError(f"{self.label}: a recipe is a mapping of sections such as 'data:', this is not")
        return document if self.folder is None else moved(document, self.folder)


def shipped_folder(name: Literal["recipes", "examples"]) -> Traversable:
    """A folder of the package that a checkout has elsewhere."""
    try:
        return resources.files(f"everest.{name}")
    except ModuleNotFoundError:  # a checkout that is not installed
        return Path(__file__).resolve().parents[2] / {"recipes": "recipes", "examples": "docs/examples"}[name]


def shipped_names() -> list[str]:
    """The names of the recipes in the package, sorted."""
    files = shipped_folder("recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def shipped_recipe(name: str) -> RecipeFile:
    """The shipped recipe of this name; underscores are accepted for hyphens."""
    spelled = name.replace("_", "-")
    if spelled not in shipped_names():
        raise unknown_name("recipe", name, shipped_names())
    label = f"{spelled}.yaml"
    text = (shipped_folder("recipes") / label).read_text(encoding="utf-8")
    return RecipeFile(name=spelled, label=label, text=text, folder=None)


def find_recipe(name_or_path: str | Path | RecipeFile, *, folder: Path = Path()) -> RecipeFile:
    """A shipped recipe by its name; a text that looks like a path is the path of a file, from `folder`."""
    if isinstance(name_or_path, RecipeFile):
        return name_or_path
    is_path = isinstance(name_or_path, Path) or name_or_path.endswith(SUFFIXES) or "/" in name_or_path
    if not is_path:
        return shipped_recipe(str(name_or_path))
    path = folder / name_or_path
    try:
        if path.exists() and not path.is_file():  # such as a pipe, which may never end
            raise ValueError("not a file; the recipe of a run is its recipe.yaml")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        reason = "not UTF-8 text" if isinstance(error, UnicodeError) else getattr(error, "strerror", error)
        location = shorten(path, most=MAX_SHOWN_OF_PATH)
        raise RecipeError(f"{location}: cannot be read: {reason}") from error
    return RecipeFile(name=path.stem, label=str(path), text=text, folder=path.parent)


def with_bases(file: RecipeFile) -> list[tuple[RecipeFile, dict[str, Any]]]:
    """The file and its bases, each with its values (without `base`), the deepest base first."""
    chain: list[tuple[RecipeFile, dict[str, Any]]] = []
    locations: list[Path] = []  # of the chain: ./ucf101.yaml is another file than the shipped ucf101
    while True:
        location = file.folder.resolve() / Path(file.label).name if file.folder else Path(file.label)
        if location in locations:
            circle = " -> ".join([*(earlier.label for earlier, _ in chain), file.label])
            raise RecipeError(f"{chain[0][0].label}: base: refers to itself: {circle}")
        values = file.values()
        base = values.pop("base", None)
        if chain:
            values.pop("name", None)  # a recipe does not inherit the name of its base
        chain.append((file, values))
        locations.append(location)
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise RecipeError(
                f"{file.label}: base: must be the name or path of a recipe, not {shorten(base)}"
            )
        try:
            file = find_recipe(base, folder=file.folder or Path())
        except RecipeError as error:
            raise RecipeError(f"{file.label}: base: {error}") from error
