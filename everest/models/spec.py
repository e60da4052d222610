"""Specifications of transformers: all settings of a model, as its checkpoint stores them to rebuild it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import torch
from torch import nn

from everest.config.heads import Heads
from everest.config.settings import Recipe
from everest.config.stage_settings import AutoencoderSettings, FrameSelectionSettings, ViewsSection
from everest.config.values import NotNegative, ShareBelowOne, settings
from everest.errors import CheckpointError, RecipeError
from everest.methods.grid import TokenGrid, check_num_tokens
from everest.methods.selection import num_candidates
from everest.methods.strategies import AllTokens, StoredStrategy
from everest.methods.targets import AnyTarget, FeatureTargets, TeacherUse
from everest.models.base import PretrainingModel
from everest.models.classifier import VideoClassifier, VideoEncoder
from everest.models.clip_spec import ClipSpec
from everest.models.mae import MaskedAutoencoder
from everest.models.positions import INTERPOLATED
from everest.models.views import ViewModel
from everest.models.vit import Architecture
from everest.system.run_folder import is_tokenizer_file, tokenizer_file
from everest.system.weights_header import TransformerKind, require_transformer
from everest.tokenizer.spec import FrozenTokenizer, TokenizerUse

Transformer = PretrainingModel | VideoClassifier | VideoEncoder  # what a ModelSpec builds


@settings
class ModelSpec(Architecture, ClipSpec):
    """All that is needed to rebuild a model with an encoder of tokens; each kind has further fields."""

    kind: TransformerKind
    selection: StoredStrategy  # chooses tokens; the key is that of a recipe

    @property
    def title(self) -> str:
        size = self.model.backbone_size
        return f"ViT of width {size.width}, depth {size.depth}, {size.heads} heads ({self.model.backbone})"

    @property
    def candidate_grid(self) -> TokenGrid:
        """The tokens of the frames that the loader returns: more than the clip's with frame selection."""
        return self.grid

    @property
    def candidate_frames(self) -> int:
        """The frames that the loader returns."""
        return self.candidate_grid.t * self.model.tubelet[0]

    @property
    def compared_views(self) -> int:
        """The clips of a video whose features are compared; 1: none are."""
        return 1

    @property
    def tokenizer_in_step(self) -> TokenizerUse | None:
        """The tokenizer that a training step runs; with a token cache the clips come with their tokens."""
        return None

    @property
    def teacher_in_step(self) -> EncoderSpec | None:
        """The teacher, which may take a clip in several windows (everest.checkpoints.frozen)."""
        return None

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from ((f"model.{key}", text) for key, text in self.model.problems())
        yield from ((f"selection.{key}", text) for key, text in self.selection.problems())
        if (self.position_grid is None) == self.model.positions.startswith(INTERPOLATED):
            yield "position_grid", "for interpolated positions, and only for these"
        try:
            check_num_tokens(self.grid)
            blank = torch.empty(1, self.grid.num_tokens, device="meta")
            if not self.selection(self.grid, importance=blank, noise=blank).visible.size(1):
                yield "selection", f"keeps none of {self.grid.num_tokens} tokens"
        except RecipeError as error:
            yield "tokens", str(error)

    @abstractmethod
    def build(self) -> Transformer: ...


@settings
class EncoderSpec(ModelSpec):
    """An encoder without a decoder or a head."""

    kind: Literal["encoder"] = "encoder"

    def build(self) -> VideoEncoder:
        return VideoEncoder(self, strategy=self.selection)


@settings
class ClassifierSpec(ModelSpec):
    """An encoder and the heads that predict classes or numbers."""

    kind: Literal["classifier"] = "classifier"
    heads: Heads
    drop_path: ShareBelowOne = 0.0  # in training

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.heads:
            yield "heads", "missing"
        yield from super().problems()

    def build(self) -> VideoClassifier:
        return VideoClassifier(self, strategy=self.selection, heads=self.heads, drop_path=self.drop_path)


@settings
class PretrainSpec(ModelSpec):
    """A model that learns without labels."""

    kind: Literal["pretrain"] = "pretrain"
    camera: NotNegative = 0.0  # weight of the camera task


@settings
class ViewSpec(PretrainSpec):
    """A model that compares views of a video."""

    views: ViewsSection

    @property
    def compared_views(self) -> int:
        return self.views.number

    def build(self) -> ViewModel:
        return ViewModel(self, strategy=self.selection, settings=self.views, camera=self.camera)


@settings
class AutoencoderSpec(PretrainSpec):
    """A model whose decoder predicts the target of hidden tokens."""

    target: AnyTarget
    tokenizer: TokenizerUse | None = None  # scores the tokens or makes the targets
    teacher: TeacherUse | None = None  # its features are the targets
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)

    @property
    def candidate_grid(self) -> TokenGrid:
        return replace(self.grid, t=num_candidates(self.grid.t, self.frame_selection.alpha))

    @property
    def tokenizer_in_step(self) -> TokenizerUse | None:
        return None if self.target.cache is not None else self.tokenizer

    @property
    def teacher_in_step(self) -> EncoderSpec | None:
        if self.teacher is None:
            return None
        return EncoderSpec.from_settings(self.teacher.settings, source=Path(self.teacher.name))

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, source: Path) -> Self:
        spec = super().from_settings(settings, source=source)
        tokenizer, moved = spec.tokenizer, tokenizer_file(source.parent)  # the run may have been moved
        if tokenizer and tokenizer.path and is_tokenizer_file(tokenizer.path) and moved.is_file():
            return replace(spec, tokenizer=replace(tokenizer, path=str(moved.resolve())))
        return spec

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.channels == 1 and (self.tokenizer or self.target.is_external):
            yield "pixels", "1 channel, where tokenizer or target take 3"
        if self.tokenizer is None and (self.selection.needs_tokenizer or self.target.needs_tokenizer):
            yield "tokenizer", "missing"
        if self.teacher is None and isinstance(self.target, FeatureTargets):
            yield "teacher", "missing"

    def without_files(self) -> Self:
        """The same model with an untrained tokenizer."""
        if self.tokenizer is None:
            return self
        return replace(self, tokenizer=replace(self.tokenizer, path=None, sha256=None))

    def build(self, teacher: nn.Module | None = None) -> MaskedAutoencoder:
        """Build the model; without a `teacher` its features are not computed."""
        tokenizer = None
        if self.tokenizer is not None:
            levels = self.tokenizer.settings.config.levels
            tokenizer = FrozenTokenizer(self.tokenizer.load, levels, self.pixels)
            if self.tokenizer_in_step:  # with a token cache it is loaded later, if at all
                _ = tokenizer.tokenizer  # loads it now, to report a missing file at once
        network = tokenizer if self.target.needs_tokenizer else teacher or self.teacher
        return MaskedAutoencoder(
            self,
            strategy=self.selection,
            targets=self.target.bound(self.pixels, network),
            tokenizer=tokenizer,
            candidate_grid=self.candidate_grid,
            recompute=self.frame_selection.recompute,
            camera=self.camera,
        )


def read_model_spec(settings: dict[str, Any], *, source: Path) -> ModelSpec:
    """Read the values that `ModelSpec.dump` returns, from the file `source`."""
    kind = str(settings.get("kind"))
    require_transformer(kind, source=source)
    by_kind = {"encoder": EncoderSpec, "classifier": ClassifierSpec}
    of_pretraining = ViewSpec if "views" in settings else AutoencoderSpec
    return by_kind.get(kind, of_pretraining).from_settings(settings, source=source)


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
    stage, architecture = recipe.finetune, _architecture(recipe)
    return ClassifierSpec(
        **vars(architecture), selection=stage.selection, heads=heads, drop_path=stage.drop_path
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
    window = grid.t if grid.t % saved.grid.t else saved.grid.t  # slices
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
