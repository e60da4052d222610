"""`ModelSpec`: all settings of a transformer, as its checkpoint stores them to rebuild the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from everest.config.heads import Heads
from everest.config.settings import Recipe
from everest.config.stage_settings import FrameSelectionSettings, ViewsSection
from everest.config.values import NotNegative, ShareBelowOne, settings
from everest.errors import CheckpointError, RecipeError
from everest.methods.grid import TokenGrid, check_num_tokens
from everest.methods.selection import num_candidates
from everest.methods.strategies import AllTokens, StoredStrategy
from everest.methods.targets import AnyTarget, FeatureTargets, TeacherUse
from everest.models.classifier import VideoClassifier, VideoEncoder
from everest.models.clip_spec import ClipSpec
from everest.models.mae import MaskedAutoencoder, PretrainingModel
from everest.models.positions import INTERPOLATED
from everest.models.views import ViewModel
from everest.models.vit import Architecture
from everest.system.run_folder import is_own_tokenizer, own_tokenizer
from everest.system.weights_header import require_transformer
from everest.tokenizer.spec import TokenizerUse

if TYPE_CHECKING:  # most models have no tokenizer
    from everest.tokenizer.spec import FrozenTokenizer

Transformer = PretrainingModel | VideoClassifier | VideoEncoder  # what a ModelSpec builds, by its kind


@settings
class ModelSpec(Architecture, ClipSpec):
    """All that is needed to rebuild a model with an encoder of tokens."""

    kind: Literal["pretrain", "classifier", "encoder"]
    selection: StoredStrategy  # chooses tokens; the key is that of a recipe
    target: AnyTarget | None = None  # pretrain, of an autoencoder
    views: ViewsSection | None = None  # pretrain, without a decoder
    camera: NotNegative = 0.0  # pretrain: weight of the camera task
    tokenizer: TokenizerUse | None = None  # pretrain: scores the tokens or makes the targets
    teacher: TeacherUse | None = None  # pretrain: its features are the targets
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)  # pretrain
    heads: Heads = ()  # classifier: what it predicts
    drop_path: ShareBelowOne = 0.0  # classifier, in training

    @property
    def title(self) -> str:
        size = self.model.backbone_size
        return f"ViT of width {size.width}, depth {size.depth}, {size.heads} heads ({self.model.backbone})"

    @property
    def candidate_grid(self) -> TokenGrid:
        """The tokens of the frames that the loader returns: more than the clip's with frame selection."""
        return replace(self.grid, t=num_candidates(self.grid.t, self.frame_selection.alpha))

    @property
    def candidate_frames(self) -> int:
        """The frames that the loader returns."""
        return self.candidate_grid.t * self.model.tubelet[0]

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, source: Path) -> Self:
        require_transformer(str(settings.get("kind")), source=source)
        spec = super().from_settings(settings, source=source)
        tokenizer, moved = spec.tokenizer, own_tokenizer(source.parent)  # the run may have been moved
        if tokenizer and tokenizer.path and is_own_tokenizer(tokenizer.path) and moved.is_file():
            return replace(spec, tokenizer=replace(tokenizer, path=str(moved.resolve())))
        return spec

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from (f"model.{key}: {text}" for key, text in self.model.problems())
        yield from (f"selection.{key}: {text}" for key, text in self.selection.problems())
        if self.channels == 1 and (self.tokenizer or (self.target and self.target.is_external)):
            yield "pixels: 1 channel, where tokenizer or target take 3"
        if self.is_autoencoder and self.target is None:
            yield "target: missing"
        if self.tokenizer is None and (
            self.selection.needs_tokenizer or (self.target and self.target.needs_tokenizer)
        ):
            yield "tokenizer: missing"
        if isinstance(self.target, FeatureTargets) and self.teacher is None:
            yield "teacher: missing"
        if (self.position_grid is None) == self.model.positions.startswith(INTERPOLATED):
            yield "position_grid: for interpolated positions, and only for these"
        if self.kind == "classifier" and not self.heads:
            yield "heads: missing"
        try:
            check_num_tokens(self.grid)
            blank = torch.empty(1, self.grid.num_tokens, device="meta")
            if not self.selection(self.grid, importance=blank, noise=blank).visible.size(1):
                yield f"selection: keeps none of {self.grid.num_tokens} tokens"
        except RecipeError as error:
            yield str(error)

    def with_positions_of(self, grid: TokenGrid) -> Self:
        """The same model; interpolated positions are those of clips of `grid`."""
        is_interpolated = self.model.positions.startswith(INTERPOLATED)
        return replace(self, position_grid=(grid.t, grid.h, grid.w) if is_interpolated else None)

    def without_files(self) -> Self:
        """The same model with an untrained tokenizer."""
        if self.tokenizer is None:
            return self
        return replace(self, tokenizer=replace(self.tokenizer, path=None, sha256=None))

    def build(self) -> Transformer:
        architecture: Architecture = self  # of which a spec is a subclass
        strategy, heads, drop_path = self.selection, self.heads, self.drop_path
        if self.kind == "encoder":
            model = VideoEncoder(architecture, strategy=strategy)
        elif self.kind == "classifier":
            model = VideoClassifier(architecture, strategy=strategy, heads=heads, drop_path=drop_path)
        elif self.views is not None:
            model = ViewModel(architecture, strategy=strategy, settings=self.views, camera=self.camera)
        else:
            assert self.target is not None
            tokenizer = self._frozen_tokenizer()
            network = tokenizer if self.target.needs_tokenizer else self.teacher
            model = MaskedAutoencoder(
                architecture,
                strategy=strategy,
                targets=self.target.bound(self.pixels, network),
                tokenizer=tokenizer,
                candidate_grid=self.candidate_grid,
                recompute=self.frame_selection.recompute,
                camera=self.camera,
            )
        model.spec = self
        return model

    def _frozen_tokenizer(self) -> FrozenTokenizer | None:
        if self.tokenizer is None:
            return None

        from everest.tokenizer.spec import FrozenTokenizer

        levels = self.tokenizer.settings.config.levels
        tokenizer = FrozenTokenizer(self.tokenizer.load, levels, self.pixels)
        if self.tokenizer_in_step:  # with a token cache it is loaded later, if at all
            _ = tokenizer.tokenizer  # loads it now, to report a missing file at once
        return tokenizer

    @property
    def is_autoencoder(self) -> bool:
        """Whether a decoder predicts tokens."""
        return self.kind == "pretrain" and self.views is None

    @property
    def tokenizer_in_step(self) -> TokenizerUse | None:
        """The tokenizer that a training step runs; with a token cache the clips come with their tokens."""
        return None if self.target is None or self.target.cache is not None else self.tokenizer

    @property
    def teacher_in_step(self) -> ModelSpec | None:
        """The teacher, which may take a clip in several windows (everest.checkpoints.frozen)."""
        if self.teacher is None:
            return None
        return ModelSpec.from_settings(self.teacher.settings, source=Path(self.teacher.name))


def pretrain_spec(
    recipe: Recipe, *, tokenizer: TokenizerUse | None, teacher: TeacherUse | None = None
) -> ModelSpec:
    """The model that a recipe pre-trains; `spec_of_pretraining` reads the facts about frozen networks."""
    section = recipe.pretrain
    spec = replace(
        encoder_spec(recipe), kind="pretrain", selection=section.selection, camera=section.camera_motion
    )
    if section.objective == "views":
        return replace(spec, views=section.views)
    spec = replace(spec, target=section.target, frame_selection=section.frame_selection)
    return replace(spec, tokenizer=tokenizer, teacher=teacher)


def encoder_spec(recipe: Recipe) -> ModelSpec:
    """The encoder of a recipe, which encodes the tokens of fine-tuning."""
    data, model = recipe.data, recipe.model
    spec = ModelSpec(
        kind="encoder",
        selection=recipe.finetune.selection,
        frames=data.frames,
        size=data.frame_size,
        model=model,
        pixels=data.pixels,
        checkpointing=recipe.train.checkpointing,
    )
    return spec.with_positions_of(spec.grid)


def classifier_spec(recipe: Recipe, heads: Heads) -> ModelSpec:
    """The classifier of a recipe."""
    return replace(encoder_spec(recipe), kind="classifier", heads=heads, drop_path=recipe.finetune.drop_path)


def teacher_spec(recipe: Recipe, saved: ModelSpec, *, name: str) -> ModelSpec:
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
    spec = ModelSpec(
        kind="encoder",
        frames=window * tubelet[0],
        size=(grid.h * p, grid.w * q),
        model=model,
        selection=AllTokens(),
        norms=saved.norms,
        pixels=saved.pixels,
    )
    return spec.with_positions_of(trained)
