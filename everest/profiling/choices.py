"""The recipe to profile: a method's or a named one, with values that options replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from everest.config.merge import SET
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.errors import RecipeError, unknown_name
from everest.methods.ranked import ByImportance
from everest.profiling.profile import METHODS, profile

# The option of `everest profile` that sets a key.
OPTIONS = {
    "model.backbone": "--backbone",
    "data.frames": "--frames",
    "data.size": "--size",
    "pretrain.selection.keep_ratio": "--keep",
}


@dataclass(frozen=True, kw_only=True)
class ProfileOverrides:
    """Values that replace a recipe's; None keeps the recipe's value."""

    backbone: str | None = None
    frames: int | None = None
    size: int | tuple[int, int] | None = None
    keep: float | None = None  # rho_pre of pre-training
    others: tuple[str, ...] = ()  # section.key=value

    def applied(self, name: str, *, everything: bool = True) -> Recipe:
        """Load the recipe `name` with the overrides.

        Args:
            everything: whether --keep applies to a strategy that keeps tokens for another reason.
        """
        selection = load_recipe(name).pretrain.selection
        measures = isinstance(selection, ByImportance)
        if self.keep is not None and measures:
            if not 0 < self.keep <= 1:
                raise RecipeError(f"--keep: must be more than 0 and at most 1, not {self.keep}")
            # load_recipe would report the recipe's own share of visible tokens as a second problem.
            sets_visible = any(text.startswith("pretrain.selection.visible_ratio=") for text in self.others)
            if not sets_visible and self.keep < (selection.visible_ratio or 0):
                raise RecipeError(
                    f"--keep: {self.keep} is less than the encoder sees ({selection.visible_ratio}); "
                    "lower pretrain.selection.visible_ratio, too"
                )
        has_keep = measures or (everything and "keep_ratio" in vars(selection))
        values: dict[str, Any] = {
            "model.backbone": self.backbone,
            "data.frames": self.frames,
            "data.size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "pretrain.selection.keep_ratio": self.keep if has_keep else None,
        }
        given = {key: value for key, value in values.items() if value is not None}
        overrides = [*(f"{key}={value}" for key, value in given.items()), *self.others]
        try:
            return load_recipe(name, overrides=overrides)
        except RecipeError as error:
            message = str(error)
            for key in given:
                message = message.replace(f"{SET}: {key}: ", f"{OPTIONS[key]}: ")
            raise RecipeError("\n".join(dict.fromkeys(message.splitlines()))) from error

    def unused(self, recipe: Recipe) -> str | None:
        """A notice if the strategy of `recipe` has no keep ratio, which is given; else None."""
        selection = recipe.pretrain.selection
        if self.keep is None or "keep_ratio" in vars(selection):
            return None
        return f"--keep has no effect with {selection.strategy}"


def recipe_of_method(method: str) -> str:
    """Return the name of a method's shipped recipe; RecipeError if there is no such method."""
    name = method.replace("_", "-")
    if name not in METHODS:
        raise unknown_name("--method", method, METHODS)
    return METHODS[name]


def compare(overrides: ProfileOverrides) -> list[dict[str, Any]]:
    """Profile every method with the same overrides, EVEREST first; each takes those that it has."""
    return [
        {"method": method, **profile(overrides.applied(name, everything=False))}
        for method, name in METHODS.items()
    ]
