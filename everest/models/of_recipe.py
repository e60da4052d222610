"""The models that the stages of a recipe train."""

from __future__ import annotations

from dataclasses import replace

from everest.config.heads import Heads, head_settings
from everest.config.settings import Recipe
from everest.methods.grid import TokenGrid
from everest.models.positions import INTERPOLATED
from everest.models.spec import ModelSpec
from everest.tokenizer.spec import TokenizerUse
from everest.tokenizer.targets import TeacherUse


def pretrain_spec(
    recipe: Recipe, *, tokenizer: TokenizerUse | None, teacher: TeacherUse | None = None
) -> ModelSpec:
    """The model that a recipe pre-trains, with the facts that `spec_of_pretraining` reads of other files."""
    stage = recipe.pretrain
    spec = replace(encoder_spec(recipe), kind="pretrain", selection=stage.selection)
    spec = replace(spec, camera=stage.camera_motion)
    if stage.objective == "views":
        return replace(spec, views=stage.views)
    return replace(
        spec,
        target=stage.target,
        tokenizer=tokenizer,
        teacher=teacher,
        frame_selection=stage.frame_selection,
    )


def encoder_spec(recipe: Recipe) -> ModelSpec:
    """The encoder of a recipe, which encodes the tokens of fine-tuning."""
    data, model, position_grid = recipe.data, recipe.model, None
    if model.positions in INTERPOLATED:
        grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=model.tubelet)
        position_grid = (grid.t, grid.h, grid.w)
    return ModelSpec(
        kind="encoder",
        selection=recipe.finetune.selection,
        frames=data.frames,
        size=data.frame_size,
        model=model,
        pixels=data.pixels,
        checkpointing=recipe.train.checkpointing,
        position_grid=position_grid,
    )


def classifier_spec(recipe: Recipe, heads: Heads) -> ModelSpec:
    """The classifier of a recipe."""
    scales = {head.name: (head.mean, head.std) for head in heads if head.task == "regression"}
    return replace(
        encoder_spec(recipe),
        kind="classifier",
        num_classes=sum(head.outputs for head in heads),
        task="single-label" if heads[0].name else heads[0].task,
        heads=head_settings(heads),
        scales=scales or None,
        drop_path=recipe.finetune.drop_path,
    )
