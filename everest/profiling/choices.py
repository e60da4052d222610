"""The recipe to profile: a method or a recipe, with some values replaced by options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from everest.config.layers import SET
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.errors import RecipeError, unknown_name
from everest.methods.strategies import ByImportance, RandomSpaceTime
from everest.profiling.profile import METHODS, profile

# The option of `everest profile` that sets a key.
OPTIONS = {
    "model.backbone": "--backbone",
    "data.frames": "--frames",
    "data.size": "--size",
    "pretrain.selection.keep_ratio": "--keep",
    "pretrain.selection.visible_ratio": "--visible",
    "pretrain.selection.mask_ratio": "--visible",
    "finetune.selection.keep_ratio": "--finetune-keep",
    "pretrain.frame_selection.alpha": "--alpha",
}


@dataclass(frozen=True, kw_only=True)
class ProfileOverrides:
    """Values that replace a recipe's; None keeps the recipe's value."""

    backbone: str | None = None
    frames: int | None = None
    size: int | None = None
    keep: float | None = None  # rho_pre of pre-training
    visible: float | None = None  # share of all tokens that the encoder sees in pre-training
    alpha: float | None = None
    finetune_keep: float | None = None
    others: tuple[str, ...] = ()  # section.key=value

    def overrides(self, recipe: Recipe) -> Iterator[tuple[str, Any]]:
        """Keys of `recipe` with their values, even those its strategies do not have: they are reported."""
        selection = recipe.pretrain.selection
        yield "model.backbone", self.backbone
        yield "data.frames", self.frames
        yield "data.size", self.size
        yield "pretrain.selection.keep_ratio", self.keep
        yield "pretrain.frame_selection.alpha", self.alpha
        yield "finetune.selection.keep_ratio", self.finetune_keep
        if isinstance(selection, ByImportance | RandomSpaceTime) or self.visible is None:
            yield "pretrain.selection.visible_ratio", self.visible
        else:
            yield "pretrain.selection.mask_ratio", 1 - Decimal(str(self.visible))

    def applied(self, name: str, *, everything: bool = True) -> Recipe:
        """The recipe called `name` with the choices.

        Args:
            everything: also the choices that its strategy does not have.
        Raises:
            RecipeError: names each impossible value by its option.
        """
        recipe = load_recipe(name)
        if self.visible is not None and not 0 < self.visible <= 1:
            raise RecipeError(f"--visible: must be more than 0 and at most 1, not {self.visible}")
        self._check_keep(recipe)
        given = {key: value for key, value in self.overrides(recipe) if value is not None}
        if not everything and not isinstance(recipe.pretrain.selection, ByImportance):
            given.pop("pretrain.selection.keep_ratio", None)
            given.pop("pretrain.frame_selection.alpha", None)
        try:
            return load_recipe(
                name, overrides=[*(f"{key}={value}" for key, value in given.items()), *self.others]
            )
        except RecipeError as error:
            raise RecipeError(_by_option(str(error), given)) from error

    def _check_keep(self, recipe: Recipe) -> None:
        """One line where the recipe's own share of visible tokens would give a second."""
        selection = recipe.pretrain.selection
        if self.keep is None or not isinstance(selection, ByImportance):
            return
        if not 0 < self.keep <= 1:
            raise RecipeError(f"--keep: must be more than 0 and at most 1, not {self.keep}")
        if self.visible is None and self.keep < (selection.visible_ratio or 0):
            raise RecipeError(
                f"--keep: {self.keep} is less than the encoder sees ({selection.visible_ratio}); "
                "give a smaller --visible, too"
            )

    def unused(self, recipe: Recipe) -> list[str]:
        """The options given that the strategies of `recipe` do not have."""
        found = []
        if self.keep is not None and not isinstance(recipe.pretrain.selection, ByImportance):
            found.append(f"--keep has no effect with {recipe.pretrain.selection.strategy}")
        if self.finetune_keep is not None and not isinstance(recipe.finetune.selection, ByImportance):
            found.append(f"--finetune-keep has no effect with {recipe.finetune.selection.strategy}")
        return found


def _by_option(message: str, given: dict[str, Any]) -> str:
    """The message with options for keys, each line once."""
    for key in given:
        message = message.replace(f"{SET}: {key}: ", f"{OPTIONS[key]}: ")
    return "\n".join(dict.fromkeys(message.splitlines()))


def recipe_of(method: str) -> str:
    """The shipped recipe of a method.

    Raises:
        RecipeError: no method is called so.
    """
    name = method.replace("_", "-")
    if name not in METHODS:
        raise unknown_name("--method", method, METHODS)
    return METHODS[name]


def compare(choices: ProfileOverrides) -> list[dict[str, Any]]:
    """The profile of every method with the same choices, EVEREST first; each takes those that it has.

    Raises:
        RecipeError: a choice that no method can have.
    """
    return [
        {"method": method, **profile(choices.applied(name, everything=False))}
        for method, name in METHODS.items()
    ]
