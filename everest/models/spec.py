"""Where an imported model norms otherwise than the released programs do.

From settings to modules and data sets: the only file that knows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Discriminator, TypeAdapter
from torch import nn

from everest.config.settings import (
    FrameSelectionSettings,
    ModelSettings,
    Recipe,
    TargetSettings,
)
from everest.errors import CheckpointError
from everest.methods.frame_selection import FrameSelection, num_candidates
from everest.methods.grid import TokenGrid
from everest.methods.strategies import Strategy
from everest.methods.targets import PixelTargets, TargetMaker
from everest.models.block import activation_bytes
from everest.models.classifier import VideoClassifier, class_attention_bytes
from everest.models.mae import MaskedAutoencoder
from everest.system.weights import read_spec
from everest.tokenizer.cache import cached_tokenizer
from everest.tokenizer.spec import TokenizerUse, tokenizer_use
from everest.tokenizer.targets import FrozenTokenizer, TokenTargets


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The LayerNorms of a model; the defaults are those of the released programs, and ours."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    after_encoder: bool = True  # pretrain; transformers may have none
    eps: float = 1e-6  # added to the variance
    last_eps: float = 1e-6  # the same of the decoder's norm, and of the one after averaging


def set_norms(model: MaskedAutoencoder | VideoClassifier, norms: Norms) -> None:
    """Make a fresh model norm as `norms` say."""
    if isinstance(model, MaskedAutoencoder) and not norms.after_encoder:
        model.encoder.norm = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norms.eps
    if isinstance(model, MaskedAutoencoder):
        model.decoder.norm.eps = norms.last_eps
    elif model.pooling == "mean":
        model.norm.eps = norms.last_eps


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to rebuild a module: the `settings` of its safetensors file."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    kind: Literal["pretrain", "classifier"]
    frames: int
    size: tuple[int, int]  # height, width
    model: ModelSettings
    selection: Annotated[Strategy, Discriminator("strategy")]
    target: TargetSettings | None = None  # pretrain
    tokenizer: TokenizerUse | None = None  # pretrain: what scores tokens or gives targets
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)  # pretrain
    num_classes: int | None = None  # classifier, of all its heads
    heads: dict[str, int] | None = None  # classifier: classes of each of several heads
    drop_path: float = 0.0  # classifier, while it trains
    checkpointing: bool = False
    norms: Norms = field(default_factory=Norms)  # others in imported models

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid.of_clip(frames=self.frames, size=self.size, tubelet=self.model.tubelet)

    def dump(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = _SPEC.dump_python(self, mode="json")
        for later in ("heads", "tokenizer"):  # files are as they were before these came
            if values[later] is None:
                del values[later]
        return values

    @staticmethod
    def of(settings: dict[str, Any], *, source: Path) -> ModelSpec:
        """The inverse of `dump`.

        Raises:
            CheckpointError: settings that this version does not know, or those of a tokenizer.
        """
        if settings.get("kind") == "tokenizer":
            raise CheckpointError(
                f"{source}: a tokenizer, which has no transformer; name a run of pretrain or finetune"
            )
        spec = read_spec(_SPEC, settings, source=source)
        return spec if spec.tokenizer is None else replace(spec, tokenizer=spec.tokenizer.beside(source))

    def build(self) -> MaskedAutoencoder | VideoClassifier:
        """The module with fresh weights, from torch's default generator."""
        model = self._build()
        set_norms(model, self.norms)
        return model

    def _build(self) -> MaskedAutoencoder | VideoClassifier:
        size, grid, tubelet = self.model.backbone_size, self.grid, self.model.tubelet
        if self.kind == "pretrain":
            frozen = self._frozen_tokenizer()
            return MaskedAutoencoder(
                size,
                grid,
                tubelet,
                selector=self.selection,
                targets=self._targets(frozen),
                learned=frozen,
                decoder_depth=self.model.decoder_depth,
                embedding_layers=self.model.embedding_layers,
                positions=self.model.positions,
                frame_selection=self._frame_selection(),
                checkpointing=self.checkpointing,
            )
        assert self.num_classes is not None
        return VideoClassifier(
            size,
            grid,
            tubelet,
            selector=self.selection,
            num_classes=self.num_classes,
            heads=self.heads,
            pooling=self.model.pooling,
            drop_path=self.drop_path,
            embedding_layers=self.model.embedding_layers,
            positions=self.model.positions,
            checkpointing=self.checkpointing,
        )

    def _frozen_tokenizer(self) -> FrozenTokenizer | None:
        """Loaded at once, so that a missing file is told now; not for clips that bring their tokens along."""
        if self.tokenizer is None:
            return None
        assert self.target is not None
        if self.target.cache is None:
            return FrozenTokenizer.of(self.tokenizer.load())
        return FrozenTokenizer(self.tokenizer.load, self.tokenizer.settings.config.levels)

    def _targets(self, frozen: FrozenTokenizer | None) -> TargetMaker:
        assert self.target is not None
        if self.target.kind == "tokens":
            assert frozen is not None
            return TokenTargets(frozen=frozen, space=self.target.space)
        normalize, frames = self.target.normalize, self.target.frames
        return PixelTargets(tubelet=self.model.tubelet, normalize=normalize, frames=frames)

    @property
    def offered_frames(self) -> int:
        """The frames that the loader hands over: more than a clip has where it is drawn from candidates."""
        return num_candidates(self.grid.t, self.frame_selection.alpha) * self.model.tubelet[0]

    def _frame_selection(self) -> FrameSelection | None:
        candidates = num_candidates(self.grid.t, self.frame_selection.alpha)
        if candidates == self.grid.t:
            return None
        return FrameSelection(candidates=candidates, recompute=self.frame_selection.recompute)

    def bytes_per_clip(self, bytes_per_value: int) -> int:
        """What one clip's training pass keeps in memory: an estimate (`activation_bytes`)."""
        size, grid = self.model.backbone_size, self.grid
        noise = torch.zeros(1, grid.num_tokens, device="meta")
        chosen = self.selection(grid, importance=noise, noise=noise)
        visible, target = chosen.visible.size(1), chosen.target.size(1)
        stacks = [(size.depth, visible, size.width)]
        if self.kind == "pretrain":
            stacks.append((self.model.decoder_depth, visible + target, size.decoder_width))
        beside = 0
        if self.kind == "classifier" and self.model.pooling == "class-attention":
            beside = class_attention_bytes(visible, size.width, bytes_per_value=bytes_per_value)
        return beside + activation_bytes(
            stacks,
            clip_values=3 * self.offered_frames * self.size[0] * self.size[1],
            bytes_per_value=bytes_per_value,
            checkpointing=self.checkpointing,
        )


_SPEC = TypeAdapter(ModelSpec)


def pretrain_spec(recipe: Recipe) -> ModelSpec:
    """The autoencoder of a recipe.

    Raises:
        CheckpointError: its tokenizer or its token cache cannot be read.
    """
    return ModelSpec(
        kind="pretrain",
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        model=recipe.model,
        selection=recipe.pretrain.selection,
        target=recipe.pretrain.target,
        tokenizer=_pretraining_tokenizer(recipe),
        frame_selection=recipe.pretrain.frame_selection,
        checkpointing=recipe.train.checkpointing,
    )


def _pretraining_tokenizer(recipe: Recipe) -> TokenizerUse | None:
    if not recipe.pretrain.needs_tokenizer:
        return None
    return tokenizer_use(recipe) if recipe.pretrain.target.cache is None else cached_tokenizer(recipe)


def classifier_spec(recipe: Recipe, *, num_classes: int, heads: Mapping[str, int] | None = None) -> ModelSpec:
    """The classifier of a recipe; `heads` where its samples have several labels."""
    return ModelSpec(
        kind="classifier",
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        model=recipe.model,
        selection=recipe.finetune.selection,
        num_classes=num_classes,
        heads=dict(heads) if heads else None,
        drop_path=recipe.finetune.drop_path,
        checkpointing=recipe.train.checkpointing,
    )
