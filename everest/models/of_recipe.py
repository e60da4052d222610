"""The models that the stages of a recipe train."""

from __future__ import annotations

from typing import TypedDict

from everest.config.heads import Heads, head_settings
from everest.config.settings import ModelSettings, Recipe
from everest.methods.grid import TokenGrid
from everest.models.positions import INTERPOLATED
from everest.models.spec import ModelSpec
from everest.tokenizer.spec import TokenizerUse
from everest.video.pixels import PixelStatistics


def pretrain_spec(recipe: Recipe, *, tokenizer: TokenizerUse | None) -> ModelSpec:
    """The autoencoder of a recipe, with the tokenizer that `everest.tokenizer.cache.tokenizer_for` finds."""
    return ModelSpec(
        kind="pretrain",
        selection=recipe.pretrain.selection,
        target=recipe.pretrain.target,
        tokenizer=tokenizer,
        frame_selection=recipe.pretrain.frame_selection,
        **_shared(recipe),
    )


def encoder_spec(recipe: Recipe) -> ModelSpec:
    """The encoder of a recipe, which encodes the tokens of fine-tuning."""
    return ModelSpec(kind="encoder", selection=recipe.finetune.selection, **_shared(recipe))


def classifier_spec(recipe: Recipe, heads: Heads) -> ModelSpec:
    """The classifier of a recipe."""
    scales = {head.name: (head.mean, head.std) for head in heads if head.task == "regression"}
    return ModelSpec(
        kind="classifier",
        selection=recipe.finetune.selection,
        num_classes=sum(head.outputs for head in heads),
        task="single-label" if heads[0].name else heads[0].task,
        heads=head_settings(heads),
        scales=scales or None,
        drop_path=recipe.finetune.drop_path,
        **_shared(recipe),
    )


class _Shared(TypedDict):
    frames: int
    size: tuple[int, int]
    model: ModelSettings
    pixels: PixelStatistics
    checkpointing: bool
    position_grid: tuple[int, int, int] | None


def _shared(recipe: Recipe) -> _Shared:
    """The fields that the models of all stages have in common."""
    data, model, position_grid = recipe.data, recipe.model, None
    if model.positions in INTERPOLATED:
        grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=model.tubelet)
        position_grid = (grid.t, grid.h, grid.w)
    return _Shared(
        frames=data.frames,
        size=data.frame_size,
        model=model,
        pixels=data.pixels,
        checkpointing=recipe.train.checkpointing,
        position_grid=position_grid,
    )
