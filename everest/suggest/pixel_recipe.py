"""Recipes with the mean and std of a data set's pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from everest.config.recipe import load_recipe
from everest.config.recipe_files import RecipeFile, find_recipe
from everest.config.yaml import write_yaml

DIGITS: Final = 4  # our choice: a fortieth of a level of a byte


def pixel_settings(document: dict[str, Any], *, channels: int) -> dict[str, Any]:
    """The values of a recipe's data section for the statistics of `Stats.to_dict`."""
    gray = {"channels": 1} if channels == 1 else {}
    return gray | {key: [round(value, DIGITS) for value in document[key]] for key in ("mean", "std")}


def check_base(base: str, *, channels: int) -> None:
    """Raise RecipeError unless a recipe can be the base of one for clips of `channels` channels."""
    load_recipe(base, overrides=[f"data.channels={channels}", "data.mean=null", "data.std=null"])


def recipe_text(output: Path, base: str, settings: dict[str, Any], *, source: Path) -> str:
    """The text of a recipe with these data settings, which extends `base`.

    Raises:
        RecipeError: they make no valid recipe, for example the std of videos of a single color.
    """
    found = find_recipe(base)
    named = found.name if found.folder is None else str(found.identity)
    values = {"base": named, "summary": f"{found.name}, with the mean and std of {source.name}"}
    text = write_yaml(values | {"data": settings})
    load_recipe(RecipeFile(name=output.stem, label=str(output), text=text, folder=output.parent))
    return text
