"""The models that the stages of a recipe train."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from everest.config.heads import Heads, head_settings
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens
from everest.models.positions import INTERPOLATED
from everest.models.spec import ModelSpec
from everest.tokenizer.spec import TokenizerUse
from everest.tokenizer.targets import TeacherUse

INTERPOLATING: Final = {computed: name for name, computed in INTERPOLATED.items()}


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


def teacher_spec(recipe: Recipe, saved: ModelSpec, *, name: str) -> ModelSpec:
    """The encoder `saved` of the teacher `name`, for clips with the tokens of a recipe's model."""
    data, tubelet = recipe.data, recipe.model.tubelet
    t, p, q = saved.model.tubelet
    if saved.channels > 1 and data.channels == 1 and saved.model.input == "differences":
        raise CheckpointError(f"{name}: the teacher sees color differences; set data.channels=3")
    if saved.channels < data.channels:
        raise CheckpointError(f"{name}: the teacher sees luma only; set data.channels={saved.channels}")
    if t % tubelet[0] and tubelet[0] % t:
        raise CheckpointError(
            f"{name}: the teacher's tokens are of {t} frames, the recipe's of {tubelet[0]}; set "
            f"model.tubelet=[{t},{tubelet[1]},{tubelet[2]}]"
        )
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=tubelet)
    model, trained = replace(saved.model, tubelet=(tubelet[0], p, q)), saved.trained_grid
    if (trained.h, trained.w) != (grid.h, grid.w):
        model = replace(model, positions=INTERPOLATING.get(model.positions, model.positions))
    window = grid.t if grid.t % saved.grid.t else saved.grid.t  # slices
    if window * tubelet[0] < 2 and model.input == "differences":
        window = grid.t
    return ModelSpec(
        kind="encoder",
        frames=window * tubelet[0],
        size=(grid.h * p, grid.w * q),
        model=model,
        selection=AllTokens(),
        norms=saved.norms,
        position_grid=(trained.t, trained.h, trained.w) if model.positions in INTERPOLATED else None,
        pixels=saved.pixels,
    )
