"""Where recipes are: those that are shipped, files of the user, and what `base:` refers to.

Nothing here needs torch, so that `everest recipes list` answers at once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from everest.config.yaml import read_yaml
from everest.errors import RecipeError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """The text of a recipe and where it is from."""

    name: str
    label: str  # what messages call the file
    text: str
    folder: Path | None  # what a `base:` path starts from; None: shipped

    @property
    def identity(self) -> Path:
        """Equal for two paths of one file, and another one for ./ucf101.yaml than for the shipped ucf101."""
        return self.folder.resolve() / Path(self.label).name if self.folder else Path(self.label)

    @property
    def summary(self) -> str:
        """Its own line about itself, if it has one."""
        return str(self.values().get("summary", ""))

    def values(self) -> dict[str, Any]:
        """The document, which must be a mapping; an empty file sets nothing."""
        document = copy.deepcopy(_document(self.text, self.label))
        if document is None:
            return {}
        if not isinstance(document, dict):
            raise RecipeError(f"{self.label}: a recipe is a mapping of sections such as 'data:', this is not")
        return document


@cache
def _document(text: str, label: str) -> Any:
    """Read once: the paper's tables ask 70 times for the same four recipes."""
    return read_yaml(text, label)


def shipped_names() -> list[str]:
    """The names of the recipes in the package, in order."""
    files = resources.files("everest.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def shipped_recipe(name: str) -> RecipeFile:
    """The shipped recipe of this name; underscores do for hyphens."""
    spelled = name.replace("_", "-")
    if spelled not in shipped_names():
        raise unknown_name("recipe", name, shipped_names())
    label = f"{spelled}.yaml"
    text = (resources.files("everest.recipes") / label).read_text(encoding="utf-8")
    return RecipeFile(name=spelled, label=label, text=text, folder=None)


def find_recipe(name_or_path: str | Path, *, folder: Path = Path()) -> RecipeFile:
    """A recipe by its name, or by its path where that is what it looks like, relative to `folder`."""
    is_path = (
        isinstance(name_or_path, Path) or name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path
    )
    if not is_path:
        return shipped_recipe(str(name_or_path))
    path = folder / name_or_path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise RecipeError(f"{path}: cannot be read: {reason}") from error
    return RecipeFile(name=path.stem, label=str(path), text=text, folder=path.parent)


def with_bases(file: RecipeFile) -> list[tuple[RecipeFile, dict[str, Any]]]:
    """The file and what it builds on, each with its values (without `base`), the deepest base first."""
    chain: list[tuple[RecipeFile, dict[str, Any]]] = []
    while True:
        if file.identity in [earlier.identity for earlier, _ in chain]:
            circle = " -> ".join([*(earlier.label for earlier, _ in chain), file.label])
            raise RecipeError(f"{chain[0][0].label}: base: goes round in a circle: {circle}")
        values = file.values()
        base = values.pop("base", None)
        chain.append((file, values))
        if base is None:
            return chain[::-1]
        file = _find_base(base, file)


def _find_base(base: Any, file: RecipeFile) -> RecipeFile:
    if not isinstance(base, str):
        raise RecipeError(f"{file.label}: base: must be the name or path of a recipe, not {base!r}")
    try:
        return find_recipe(base, folder=file.folder or Path())
    except RecipeError as error:
        raise RecipeError(f"{file.label}: base: {error}") from error
