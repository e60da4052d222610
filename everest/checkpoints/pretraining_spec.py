"""The model that a recipe pre-trains, specified with what it takes from other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

from everest.checkpoints.teacher import teacher_use
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.models.of_recipe import pretrain_spec
from everest.models.spec import ModelSpec
from everest.tokenizer.cache import TokenIndex
from everest.tokenizer.spec import TokenizerUse, tokenizer_settings, tokenizer_use
from everest.tokenizer.targets import TeacherUse

Use = TypeVar("Use", TokenizerUse, TeacherUse)
KEYS: Final = {"tokenizer": "tokenizer.checkpoint", "teacher": "pretrain.target.teacher"}


def spec_of_pretraining(recipe: Recipe) -> ModelSpec:
    """The model that a recipe pre-trains, with the facts of its tokenizer and its teacher.

    With a cache, its index supplies the facts of the network that made it.
    """
    stage, tokenizer, teacher = recipe.pretrain, None, None
    if stage.needs_tokenizer:
        named = tokenizer_settings(recipe).checkpoint
        tokenizer = _network_use(recipe, "tokenizer", named, tokenizer_use)
    if stage.teacher is not None:
        teacher = _network_use(recipe, "teacher", stage.teacher, teacher_use)
    return pretrain_spec(recipe, tokenizer=tokenizer, teacher=teacher)


def _network_use(
    recipe: Recipe, of: Literal["tokenizer", "teacher"], named: str | None, identify: Callable[[Recipe], Use]
) -> Use:
    """The network that made the cache of a recipe; without a cache the one that the recipe names."""
    cache = recipe.pretrain.cache
    if cache is None:
        return identify(recipe)
    made: Use = getattr(TokenIndex.read(Path(cache), of=of), of)
    if named is None or (isinstance(made, TeacherUse) and named == made.name):
        return made
    use = identify(recipe)
    if use.sha256 != made.sha256:
        maker = made.name if isinstance(made, TeacherUse) else made.path
        raise CheckpointError(
            f"{cache}: made with the {of} {maker}, not {named}; set {KEYS[of]} to that {of}, or make the "
            "cache again with everest prepare tokens --overwrite"
        )
    return made
