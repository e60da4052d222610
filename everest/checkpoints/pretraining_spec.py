"""The model that a recipe pre-trains, specified with what it takes from other files."""

from __future__ import annotations

from pathlib import Path

from everest.checkpoints.teacher import open_teacher
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.models.of_recipe import pretrain_spec
from everest.models.spec import ModelSpec
from everest.tokenizer.cache import TokenIndex, tokenizer_for


def spec_of_pretraining(recipe: Recipe) -> ModelSpec:
    """The model that a recipe pre-trains, with the facts of its tokenizer and its teacher.

    With a cache of the teacher's features, the index of the cache supplies the facts of the teacher.

    Raises:
        UserError: the tokenizer, the teacher or the cache of their outputs cannot be read, or does not fit.
    """
    name, cache, teacher = recipe.pretrain.teacher, recipe.pretrain.cache, None
    if name is not None and cache is None:
        teacher = open_teacher(recipe).use
    elif name is not None and cache is not None:
        teacher = TokenIndex.read(Path(cache), of="teacher").teacher
        assert teacher is not None
        if teacher.name != name and teacher.sha256 != open_teacher(recipe).use.sha256:
            raise CheckpointError(
                f"{cache}: its features are not of {name} but of {teacher.name}; name that teacher, or run "
                "everest prepare tokens --overwrite"
            )
    return pretrain_spec(recipe, tokenizer=tokenizer_for(recipe), teacher=teacher)
