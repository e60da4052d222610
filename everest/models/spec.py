"""Specifications of transformers from recipes and from the settings of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.config.heads import Heads
from everest.config.settings import Recipe
from everest.config.stage_settings import AutoencoderSettings
from everest.errors import CheckpointError
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens
from everest.methods.targets import START, FeatureTargets, TeacherUse
from everest.models.base import PretrainingModel
from everest.models.classifier import ClassifierSpec, EncoderSpec, VideoClassifier, VideoEncoder
from everest.models.clip_spec import ModelSpec, PretrainSpec
from everest.models.mae import AutoencoderSpec
from everest.models.positions import INTERPOLATED
from everest.models.student import StudentSpec
from everest.models.view_model import ViewSpec
from everest.models.vit import Architecture
from everest.system.weights_header import require_transformer
from everest.tokenizer.spec import TokenizerUse

Transformer = PretrainingModel | VideoClassifier | VideoEncoder  # what a ModelSpec builds


def read_model_spec(settings: dict[str, Any], *, source: Path) -> ModelSpec:
    """Read the values that `ModelSpec.dump` returns, from the file `source`."""
    kind = str(settings.get("kind"))
    require_transformer(kind, source=source)
    # Three specifications have the kind `pretrain`.
    pretrain_class: type[PretrainSpec] = ViewSpec if "views" in settings else AutoencoderSpec
    if (settings.get("target") or {}).get("teacher") == START:
        pretrain_class = StudentSpec
    by_kind = {"encoder": EncoderSpec, "classifier": ClassifierSpec}
    return by_kind.get(kind, pretrain_class).from_settings(settings, source=source)


def teacher_in_step(spec: object) -> EncoderSpec | None:
    """The frozen teacher that a training step runs, perhaps in several windows of a clip; None: none."""
    if not isinstance(spec, AutoencoderSpec | StudentSpec) or spec.teacher is None:
        return None
    return EncoderSpec.from_settings(spec.teacher.settings, source=Path(spec.teacher.name))


class FrozenNetworks(NamedTuple):
    """The frozen networks that a model is pre-trained with (everest.checkpoints.frozen)."""

    tokenizer: TokenizerUse | None = None
    teacher: TeacherUse | None = None


NO_NETWORKS: Final = FrozenNetworks()


def pretrain_spec(recipe: Recipe, frozen: FrozenNetworks = NO_NETWORKS) -> PretrainSpec:
    """The model that a recipe pre-trains, with the frozen networks that it needs."""
    section = recipe.pretrain
    shared = {"selection": section.selection, "camera": section.camera_motion, **vars(_architecture(recipe))}
    if not isinstance(section, AutoencoderSettings):
        return ViewSpec(**shared, views=section.views)
    if not section.has_decoder:
        assert isinstance(section.target, FeatureTargets)
        assert frozen.teacher is not None
        return StudentSpec(**shared, target=section.target, teacher=frozen.teacher)
    return AutoencoderSpec(
        **shared,
        target=section.target,
        tokenizer=frozen.tokenizer,
        teacher=frozen.teacher,
        frame_selection=section.frame_selection,
    )


def encoder_spec(recipe: Recipe) -> EncoderSpec:
    """The encoder of a recipe, which encodes the tokens of fine-tuning."""
    return EncoderSpec(**vars(_architecture(recipe)), selection=recipe.finetune.selection)


def classifier_spec(recipe: Recipe, heads: Heads) -> ClassifierSpec:
    """The classifier of a recipe."""
    section, architecture = recipe.finetune, _architecture(recipe)
    return ClassifierSpec(
        **vars(architecture), selection=section.selection, heads=heads, drop_path=section.drop_path
    )


def _architecture(recipe: Recipe) -> Architecture:
    """What the models of all stages share."""
    data = recipe.data
    architecture = Architecture(
        frames=data.frames,
        size=data.frame_size,
        model=recipe.model,
        pixels=data.pixels,
        checkpointing=recipe.train.checkpointing,
    )
    return architecture.with_positions_of(architecture.grid)


def teacher_spec(recipe: Recipe, saved: ModelSpec, *, name: str) -> EncoderSpec:
    """The encoder `saved` of the teacher `name`, for clips with the tokens of a recipe's model."""
    data, tubelet = recipe.data, recipe.model.tubelet
    t, p, q = saved.model.tubelet
    sees_color_differences = saved.channels > data.channels and saved.model.input == "differences"
    if saved.channels < data.channels or sees_color_differences:
        channels = "luma only" if saved.channels == 1 else "color differences"
        raise CheckpointError(f"{name}: the teacher sees {channels}; set data.channels={saved.channels}")
    if t % tubelet[0] and tubelet[0] % t:
        raise CheckpointError(
            f"{name}: the teacher's tokens are of {t} frames, the recipe's of {tubelet[0]}; set "
            f"model.tubelet=[{t},{tubelet[1]},{tubelet[2]}]"
        )
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=tubelet)
    model, trained = replace(saved.model, tubelet=(tubelet[0], p, q)), saved.trained_grid
    if (trained.h, trained.w) != (grid.h, grid.w) and model.positions in ("flat", "separable"):
        model = replace(model, positions=f"{INTERPOLATED}{model.positions}")
    window = grid.t if grid.t % saved.grid.t else saved.grid.t  # time indices
    if window * tubelet[0] < 2 and model.input == "differences":
        window = grid.t
    spec = EncoderSpec(
        frames=window * tubelet[0],
        size=(grid.h * p, grid.w * q),
        model=model,
        selection=AllTokens(),
        norms=saved.norms,
        pixels=saved.pixels,
    )
    return spec.with_positions_of(trained)
