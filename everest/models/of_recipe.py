"""The models that the stages of a recipe train."""

from __future__ import annotations

from collections.abc import Mapping

from everest.config.settings import Recipe
from everest.methods.grid import TokenGrid
from everest.models.positions import INTERPOLATED
from everest.models.spec import ModelSpec
from everest.tokenizer.spec import TokenizerUse


def pretrain_spec(recipe: Recipe, *, tokenizer: TokenizerUse | None) -> ModelSpec:
    """The autoencoder of a recipe, with the tokenizer that `everest.tokenizer.cache.tokenizer_for` finds."""
    return ModelSpec(
        kind="pretrain",
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        model=recipe.model,
        selection=recipe.pretrain.selection,
        target=recipe.pretrain.target,
        tokenizer=tokenizer,
        frame_selection=recipe.pretrain.frame_selection,
        pixels=recipe.data.pixels,
        checkpointing=recipe.train.checkpointing,
        position_grid=_position_grid(recipe),
    )


def encoder_spec(recipe: Recipe) -> ModelSpec:
    """The encoder of a recipe, which encodes the tokens of fine-tuning."""
    return ModelSpec(
        kind="encoder",
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        model=recipe.model,
        selection=recipe.finetune.selection,
        pixels=recipe.data.pixels,
        checkpointing=recipe.train.checkpointing,
        position_grid=_position_grid(recipe),
    )


def classifier_spec(recipe: Recipe, *, num_classes: int, heads: Mapping[str, int] | None = None) -> ModelSpec:
    """The classifier of a recipe, with several `heads` if its samples have several labels."""
    return ModelSpec(
        kind="classifier",
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        model=recipe.model,
        selection=recipe.finetune.selection,
        num_classes=num_classes,
        heads=dict(heads) if heads else None,
        drop_path=recipe.finetune.drop_path,
        pixels=recipe.data.pixels,
        checkpointing=recipe.train.checkpointing,
        position_grid=_position_grid(recipe),
    )


def _position_grid(recipe: Recipe) -> tuple[int, int, int] | None:
    """The tokens of a recipe's clips, if it has interpolated positions."""
    if recipe.model.positions not in INTERPOLATED:
        return None
    data = recipe.data
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)
    return grid.t, grid.h, grid.w
