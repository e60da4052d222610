"""Strategies and recipes from Python values, checked in the same way as a recipe file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from everest.config.checks import contradictions
from everest.config.layers import KeyPath
from everest.config.messages import explain_validation
from everest.config.settings import Recipe
from everest.errors import RecipeError, one_per_line
from everest.methods.external import import_named, is_import_path
from everest.methods.selector import Selector


def make_selector(strategy: str, *, kept: float | None, settings: Mapping[str, Any]) -> Selector:
    """A strategy for a figure that shows a share `kept` of the tokens (None: as in a recipe).

    Raises:
        RecipeError: an unknown strategy or setting, or invalid values.
    """
    selector = selector_for(strategy, None, settings)
    return selector if kept is None else selector.showing(kept)


def selector_for(strategy: str, keep: float | None, settings: Mapping[str, Any]) -> Selector:
    """A strategy with these settings.

    Args:
        keep: the share of the tokens that it encodes, unless `settings` set it; None: as in a recipe.
    Raises:
        RecipeError: an unknown strategy or setting, or invalid values.
        ValueError: `keep` is not in (0, 1].
    """
    if is_import_path(strategy):
        import_named(strategy)
    recipe = recipe_of_sections({"pretrain": {"selection": {"strategy": strategy, **settings}}})
    selector = recipe.pretrain.selection
    if keep is not None:
        given = {name: getattr(selector, name) for name in settings}
        selector = replace(selector.keeping(keep), **given)
    if settings:  # `keep` is already checked, and can be 1, which leaves pre-training nothing to predict
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, selection=selector))
        # Only problems of single settings: the selection need not leave tokens to predict.
        refuse_contradictions(recipe, lambda key: key[:2] == ("pretrain", "selection") and len(key) > 2)
    return selector


def recipe_of_sections(sections: dict[str, Any]) -> Recipe:
    """A recipe with these sections, and defaults for the others; RecipeError lists the problems."""
    try:
        return TypeAdapter(Recipe).validate_python({"name": "notebook", **sections})
    except ValidationError as error:
        raise _recipe_error(explain_validation(error)) from error


def refuse_contradictions(recipe: Recipe, concerns: Callable[[KeyPath], bool]) -> None:
    """Raise RecipeError if there are contradictions at keys for which `concerns` is true."""
    problems = [(key, text) for key, text in contradictions(recipe) if concerns(key)]
    if problems:
        raise _recipe_error(problems)


def _recipe_error(problems: Sequence[tuple[KeyPath, str]]) -> RecipeError:
    return RecipeError(one_per_line(f"{'.'.join(key)}: {text}" for key, text in problems))
