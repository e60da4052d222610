"""`visualize-mask`: which tokens of a clip strategies and models keep, see and predict.

C channels, T frames, H W pixels, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.describe import find_training_clip
from everest.checkpoints.load import AnyModel, LoadedModel
from everest.config.recipe import make_strategy
from everest.config.settings import Recipe
from everest.config.values import ModelInput
from everest.data.footage import read_footage
from everest.data.recipe_clips import clip_format
from everest.data.views import ClipFormat, EvalViews
from everest.errors import RecipeError
from everest.figures.rows import HIDDEN_GRAY, ClipMask, draw_rows, make_figure_rows, with_three_channels
from everest.lists.sample import Sample
from everest.methods.grid import TokenGrid, TokenSelection, patchify, unpatchify
from everest.methods.importance import Embedding, RawPixels
from everest.methods.selection import Strategy, TopK, measure_importance
from everest.methods.strategies import AllTokens, LearnedImportance, ScoreName
from everest.methods.targets import FeatureTargets
from everest.models.base import TokenModel
from everest.models.classifier import SelectingModel
from everest.models.mae import MaskedAutoencoder
from everest.models.vit import frame_differences
from everest.system.files import check_new_file, refuse_inputs
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.frozen_tokenizer import FrozenTokenizer
from everest.video.folders import video_name
from everest.video.metadata import VideoInfo
from everest.video.reader import video_info

NO_MODEL: Final = RawPixels((2, 16, 16))  # the pixels of EVEREST's tokens
DEFAULT_CLIP: Final = ClipFormat(frames=16, stride=4, size=(224, 224))
DEFAULT_STRATEGY: Final = "redundancy-robust"
COMPARED_STRATEGIES: Final = ("random", "tube", "running-cell", DEFAULT_STRATEGY)  # EVEREST Figure 8
PAPERS: Final = {  # titles of rows name whose strategy it is
    "redundancy-robust": "EVEREST",
    "tube": "VideoMAE",
    "random": "ST-MAE",
    "running-cell": "VideoMAE V2",
}
TOKENIZER_CHOICE: Final = LearnedImportance(mask_ratio=1.0, keep_ratio=0.1, random_ratio=0.0)
COMPARED_SCORES: Final[tuple[ScoreName, ...]] = ("frame-difference", "random", "learned")  # LVMAE Figure 3


@torch.inference_mode()
def apply_strategies(
    clip: Tensor,
    strategies: Sequence[tuple[str, Strategy]],
    *,
    embed: Embedding,
    model: AnyModel | None = None,
    input_kind: ModelInput = "frames",
    seed: int,
) -> list[ClipMask]:
    """Apply strategies, each given with its title, to a clip (C, T, H, W) uint8.

    Args:
        embed: measures change.
        model: a tokenizer scores the tokens; an autoencoder predicts those that the strategies hide.
        input_kind: what the strategies get: frames, or their differences.
    """
    x = embed.pixels.normalize(clip)[None]  # (1, C, T, H, W)
    seen = x if input_kind == "frames" else frame_differences(x, embed.pixels)
    scorer = model.scorer if isinstance(model, TokenModel) else None
    if isinstance(model, AdaptiveTokenizer):
        scorer = FrozenTokenizer.wrap(model).scores
    grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, grid.num_tokens), dtype=np.float32))
    masks: list[ClipMask] = []
    for title, strategy in strategies:
        importance = measure_importance(strategy, seen, embed, scorer) if strategy.uses_importance else None
        selection = strategy(grid, importance=importance, noise=noise)
        num_visible, num_targets = selection.visible.size(1), selection.predicted.size(1)
        if not num_visible and (not num_targets or isinstance(model, MaskedAutoencoder)):
            name = strategy.strategy
            raise RecipeError(f"--keep: {name} keeps none of the tokens that are seen; keep more")
        mask = ClipMask(
            title=title,
            strategy=strategy,
            grid=grid,
            visible=selection.visible[0],
            predicted_ids=selection.predicted[0],
            importance=None if importance is None else importance[0],
            frames=_to_frames(embed.pixels.unnormalize(x)),
            predicted=_reconstruct(model, x, selection) if isinstance(model, MaskedAutoencoder) else None,
        )
        masks.append(mask)
    return masks


def _reconstruct(model: MaskedAutoencoder, x: Tensor, selection: TokenSelection) -> Tensor | None:
    """Complete the visible tokens of a clip (1, C, T, H, W) with the predicted ones: frames (T, H, W, 3).

    None if nothing is predicted, or features, which have no pixels to show.
    """
    if not selection.predicted.size(1) or isinstance(model.targets.settings, FeatureTargets):
        return None
    prediction = model(x, selection=selection).prediction
    inputs, tubelet = model.to_input(x), model.embedding.tubelet
    patches = patchify(model.pixels.unnormalize(inputs), tubelet)[0]  # (N, C, t, p, q)
    completed = torch.full_like(patches, HIDDEN_GRAY)
    completed[selection.predicted[0]] = model.targets.as_pixels(prediction, inputs, selection.predicted)[0]
    completed[selection.visible[0]] = patches[selection.visible[0]]
    return _to_frames(unpatchify(completed[None], model.encoder.grid))


def _to_frames(clip: Tensor) -> Tensor:
    """A clip (1, C, T, H, W) as frames (T, H, W, 3) in [0, 1]."""
    return with_three_channels(clip[0].movedim(0, -1).clamp(0, 1))


def scale_size(shorter: int, video: VideoInfo, *, multiples: tuple[int, int]) -> tuple[int, int]:
    """Height and width of frames in the video's shape by their shorter side, rounded to `multiples`."""
    sides = (video.height, video.width)
    scale = shorter / min(sides)
    height, width = (max(round(side * scale / n), 1) * n for side, n in zip(sides, multiples, strict=True))
    return height, width


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """The clip of a video that masks are sampled on, and what measures and selects its tokens."""

    strategy: Strategy | None = None  # None: DEFAULT_STRATEGY
    clip: ClipFormat = DEFAULT_CLIP
    side: int | None = 224  # pixels of the shorter side of frames in the video's shape; None: `clip.size`
    embed: Embedding = field(default_factory=lambda: NO_MODEL)  # measures change
    input_kind: ModelInput = "frames"
    model: AnyModel | None = None

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> MaskSettings:
        """The clips and tokens of a recipe's pre-training."""
        return cls(
            strategy=recipe.pretrain.selection,
            clip=clip_format(recipe, "pretrain"),
            side=None,
            embed=RawPixels(recipe.model.tubelet, recipe.data.pixels),
            input_kind=recipe.model.input,
        )

    @classmethod
    def of_checkpoint(cls, loaded: LoadedModel) -> MaskSettings:
        """The clips and tokens of a transformer's training, or the scores of a tokenizer."""
        if isinstance(tokenizer := loaded.module, AdaptiveTokenizer):
            frames = -(-DEFAULT_CLIP.frames // tokenizer.chunk) * tokenizer.chunk
            return cls(
                clip=replace(DEFAULT_CLIP, frames=frames),
                side=min(loaded.spec.size),
                embed=RawPixels(tokenizer.tubelet),
                model=tokenizer,
            )
        model = loaded.transformer
        own_clip = replace(DEFAULT_CLIP, frames=model.spec.frames, size=model.spec.size)
        return cls(
            strategy=model.strategy.at_evaluation() if isinstance(model, SelectingModel) else model.strategy,
            clip=find_training_clip(loaded) or own_clip,
            side=None,
            embed=model.embedding,
            input_kind=model.input,
            model=model,
        )

    def with_clip(self, *, frames: int | None, stride: int | None, side: int | None) -> MaskSettings:
        """Change the clip; RecipeError if the model takes other clips."""
        if isinstance(self.model, TokenModel):
            for name, given, own in (
                ("frames", frames, self.clip.frames),
                ("size", side, min(self.clip.size)),
            ):
                if given not in (None, own):
                    raise RecipeError(f"--{name} {given}: the model of --checkpoint takes {own}")
            side = None
        elif isinstance(self.model, AdaptiveTokenizer) and frames and frames % self.model.chunk:
            raise RecipeError(f"--frames {frames}: give a multiple of the tokenizer's {self.model.chunk}")
        clip = replace(self.clip, frames=frames or self.clip.frames)
        if stride is not None:
            clip = replace(clip, stride=stride, sampling="dense")  # the other samplings have no stride
        return replace(self, clip=clip, side=side or self.side)

    def list_strategies(
        self, names: Sequence[str], ratios: Sequence[float], *, compare: bool
    ) -> list[tuple[str, Strategy]]:
        """Return the strategies to draw with their titles, at each keep ratio.

        Args:
            names: strategies; none: the one of the recipe or checkpoint, if it takes the ratios.
            ratios: keep ratios of these strategies, and of those that rank tokens; none: their own.
            compare: draw the common strategies first or, for a tokenizer, other scores.
        """
        if isinstance(self.model, AdaptiveTokenizer):
            return _list_scores(names, ratios, compare=compare)
        own = None if ratios and isinstance(self.strategy, AllTokens) else self.strategy
        chosen = [make_strategy(name, {}) for name in names]
        chosen = chosen or [own or make_strategy(DEFAULT_STRATEGY, {})]
        taken = [strategy.strategy for strategy in chosen]
        common = COMPARED_STRATEGIES if compare else ()
        strategies = [*(make_strategy(other, {}) for other in common if other not in taken), *chosen]
        rows = [
            _with_ratio(strategy, ratio) if strategy in chosen or isinstance(strategy, TopK) else strategy
            for ratio in ratios
            for strategy in strategies
        ]
        rows = rows or strategies
        distinct = [row for number, row in enumerate(rows) if row not in rows[:number]]
        papers = [PAPERS.get(row.strategy) for row in distinct]
        return [
            (f"{row.strategy} ({paper})" if paper else row.strategy, row)
            for row, paper in zip(distinct, papers, strict=True)
        ]

    def draw(
        self,
        video: Path,
        strategies: Sequence[tuple[str, Strategy]],
        out: Path,
        *,
        is_file: bool,
        read: Sequence[Path],
        overwrite: bool,
        seed: int,
    ) -> list[dict[str, Any]]:
        """Draw a clip in the middle of a video into a figure; returns a --json row per strategy.

        Args:
            out: the figure (`is_file`), or the folder of VIDEO-mask.png.
            read: the inputs of the command, which no figure may replace.
            seed: seed of random selections.
        """
        path = out if is_file else out / f"{video_name(video)}-mask.png"
        refuse_inputs(path, read)
        check_new_file(path, overwrite=overwrite)
        info, clip, embed = video_info(video), self.clip, self.embed
        if self.side is not None:
            cell = max(strategy.cell for _, strategy in strategies)
            multiples = cell * embed.tubelet[1], cell * embed.tubelet[2]
            clip = replace(clip, size=scale_size(self.side, info, multiples=multiples))
        views, sample = EvalViews(**vars(clip), clips=1, crops=1), Sample(path=str(video))
        (frames,) = views(sample, np.random.default_rng(0), "auto").frames  # (C, T, H, W) uint8
        (frame_ids,) = views.clip_frame_ids(read_footage(sample, clip.fps)).tolist()
        masks = apply_strategies(
            frames, strategies, model=self.model, embed=embed, input_kind=self.input_kind, seed=seed
        )
        embedding = "pixels" if self.model is None else "checkpoint"
        title = f"{video.name}, frames {frame_ids[0]} to {frame_ids[-1]} of {info.num_frames}"
        if any(len(mask.visible) and len(mask.predicted_ids) for mask in masks):
            title += "\npredicted tokens are orange, omitted tokens gray"
        if any(mask.importance is not None for mask in masks):
            title += f"\nimportance is measured on the {embedding}"
        draw_rows(
            path, make_figure_rows(masks), num_time_indices=masks[0].grid.t, title=title, numbers=frame_ids
        )
        shared = {"embedding": embedding, "written": [str(path)], "frames": frame_ids}
        shared["frames_total"] = info.num_frames
        return [{"video": str(video), **mask.to_dict(), **shared} for mask in masks]


def _list_scores(
    names: Sequence[str], ratios: Sequence[float], *, compare: bool
) -> list[tuple[str, Strategy]]:
    """The choice of a tokenizer by its scores at each keep ratio; with `compare`, also by other scores."""
    own = TOKENIZER_CHOICE.strategy
    if set(names) - {own}:
        raise RecipeError(f"--strategy: a tokenizer's scores choose by {own}; leave it out")
    return [
        (score, replace(TOKENIZER_CHOICE, score=score, keep_ratio=ratio))
        for ratio in ratios or [TOKENIZER_CHOICE.keep_ratio]
        for score in (COMPARED_SCORES if compare else COMPARED_SCORES[-1:])
    ]


def _with_ratio(strategy: Strategy, ratio: float) -> Strategy:
    """The strategy with this keep ratio; at most a third of the kept tokens is visible, as in recipes."""
    if not isinstance(strategy, TopK):
        return strategy.keeping(ratio)
    third = float(Decimal(str(ratio)) / 3)  # a third of the decimal number: 0.1 for 0.3, not slightly less
    return replace(strategy, keep_ratio=ratio, visible_ratio=min(strategy.visible_ratio or ratio, third))
