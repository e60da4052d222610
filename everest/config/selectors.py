"""Short ways for notebooks: a model by its name, a clip of a file, the tokens a strategy chooses.

B batch, C channels, T frames, H W pixels, N tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from everest.config.checks import contradictions
from everest.config.layers import KeyPath
from everest.config.messages import explain_validation
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.methods.selector import Selector
from everest.methods.strategies import Strategy


def make_selector(strategy: str, *, kept: float | None, settings: Mapping[str, Any]) -> Selector:
    """A strategy to look at.

    Args:
        kept: the share that is kept by a strategy that sorts by importance, of which a part is visible; of
            another strategy the share that is visible. None: as in a recipe.
    Raises:
        RecipeError: an unknown strategy or setting, or values that cannot be meant.
    """
    selector = selector_for(strategy, None, settings)
    return selector if kept is None else selector.showing(kept)


def selector_for(strategy: str, keep: float | None, settings: Mapping[str, Any]) -> Strategy:
    recipe = recipe_of({"pretrain": {"selection": {"strategy": strategy, **settings}}})
    selector = recipe.pretrain.selection
    if keep is not None:
        given = {name: getattr(selector, name) for name in settings}
        selector = replace(selector.keeping(keep), **given)
    if settings:  # `keep` is checked already, and may be 1 where no recipe would mask nothing
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, selection=selector))
        # A setting's own key only: that pre-training predicts something is not asked of a choice to look at.
        refuse_contradictions(recipe, lambda key: key[:2] == ("pretrain", "selection") and len(key) > 2)
    return selector


def recipe_of(sections: dict[str, Any]) -> Recipe:
    """A recipe with these sections, all else by default; RecipeError names what is wrong."""
    try:
        return TypeAdapter(Recipe).validate_python({"name": "notebook", **sections})
    except ValidationError as error:
        raise _problems(explain_validation(error)) from error


def refuse_contradictions(recipe: Recipe, concerns: Callable[[KeyPath], bool]) -> None:
    found = [(key, text) for key, text in contradictions(recipe) if concerns(key)]
    if found:
        raise _problems(found)


def _problems(found: list[tuple[KeyPath, str]]) -> RecipeError:
    return RecipeError("\n".join(f"{'.'.join(key)}: {text}" for key, text in found))
