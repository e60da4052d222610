"""The recipe to profile: a method's or a named one, with values that options replace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
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
    size: int | tuple[int, int] | None = None
    keep: float | None = None  # rho_pre of pre-training
    visible: float | None = None  # share of all tokens that the encoder sees in pre-training
    alpha: float | None = None
    finetune_keep: float | None = None
    others: tuple[str, ...] = ()  # section.key=value

    def overrides(self, recipe: Recipe) -> Iterator[tuple[str, Any]]:
        """Yield keys and values, also keys that the strategies of `recipe` lack: those are reported."""
        selection = recipe.pretrain.selection
        yield "model.backbone", self.backbone
        yield "data.frames", self.frames
        yield "data.size", list(self.size) if isinstance(self.size, tuple) else self.size
        yield "pretrain.selection.keep_ratio", self.keep
        yield "pretrain.frame_selection.alpha", self.alpha
        yield "finetune.selection.keep_ratio", self.finetune_keep
        if "visible_ratio" in vars(selection) or self.visible is None:
            yield "pretrain.selection.visible_ratio", self.visible
        else:
            yield "pretrain.selection.mask_ratio", 1 - Decimal(str(self.visible))

    def applied(self, name: str, *, everything: bool = True) -> Recipe:
        """Load the recipe `name` with the overrides.

        Args:
            everything: whether to apply overrides that its strategy does not have, which is an error.
        Raises:
            RecipeError: a value is impossible; the message names it by its option.
        """
        recipe = load_recipe(name)
        if self.visible is not None and not 0 < self.visible <= 1:
            raise RecipeError(f"--visible: must be more than 0 and at most 1, not {self.visible}")
        selection = recipe.pretrain.selection
        measures = isinstance(selection, ByImportance)
        if self.keep is not None and measures:
            if not 0 < self.keep <= 1:
                raise RecipeError(f"--keep: must be more than 0 and at most 1, not {self.keep}")
            # load_recipe would report the recipe's own share of visible tokens as a second problem.
            if self.visible is None and self.keep < (selection.visible_ratio or 0):
                raise RecipeError(
                    f"--keep: {self.keep} is less than the encoder sees ({selection.visible_ratio}); "
                    "give a smaller --visible, too"
                )
        given = {key: value for key, value in self.overrides(recipe) if value is not None}
        for stage, settings in recipe.stages:
            if "keep_ratio" not in vars(settings.selection):  # see `unused`
                given.pop(f"{stage}.selection.keep_ratio", None)
        if not everything and not measures:
            given.pop("pretrain.selection.keep_ratio", None)
            given.pop("pretrain.frame_selection.alpha", None)
        overrides = [*(f"{key}={value}" for key, value in given.items()), *self.others]
        try:
            return load_recipe(name, overrides=overrides)
        except RecipeError as error:
            message = str(error)
            for key in given:
                message = message.replace(f"{SET}: {key}: ", f"{OPTIONS[key]}: ")
            raise RecipeError("\n".join(dict.fromkeys(message.splitlines()))) from error

    def unused(self, recipe: Recipe) -> list[str]:
        """Return a notice for each given option that the strategies of `recipe` do not have."""
        selections = (
            ("--keep", self.keep, recipe.pretrain.selection),
            ("--finetune-keep", self.finetune_keep, recipe.finetune.selection),
        )
        return [
            f"{option} has no effect with {selection.strategy}"
            for option, value, selection in selections
            if value is not None and not isinstance(selection, ByImportance)
        ]


def recipe_of_method(method: str) -> str:
    """Return the name of a method's shipped recipe; RecipeError if there is no such method."""
    name = method.replace("_", "-")
    if name not in METHODS:
        raise unknown_name("--method", method, METHODS)
    return METHODS[name]


def compare(overrides: ProfileOverrides) -> list[dict[str, Any]]:
    """Profile every method with the same overrides, EVEREST first; each takes those that it has.

    Raises:
        RecipeError: an override that no method can have.
    """
    return [
        {"method": method, **profile(overrides.applied(name, everything=False))}
        for method, name in METHODS.items()
    ]
