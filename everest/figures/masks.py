"""`visualize-mask`: which tokens of a clip strategies and models keep, see and predict.

C channels, T frames, H W pixels, N tokens, K selected tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.figures.rows import HIDDEN_GRAY, ClipMask, draw_rows, make_figure_rows, make_mask_title, to_rgb
from everest.lists.sample import Sample
from everest.methods.grid import TokenGrid, TokenSelection, patchify, unpatchify
from everest.methods.importance import Embedding, RawPixels
from everest.methods.selection import Strategy, TopK, measure_importance
from everest.methods.strategies import AllTokens, LearnedImportance, ScoreName
from everest.methods.targets import FeatureTargets
from everest.models.base import SelectingModel, TokenModel
from everest.models.mae import MaskedAutoencoder
from everest.models.vit import frame_differences
from everest.system.files import check_new_file, refuse_inputs
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.frozen_tokenizer import FrozenTokenizer
from everest.video.folders import video_name
from everest.video.metadata import VideoInfo
from everest.video.reader import video_info

PIXEL_TUBELET: Final = (2, 16, 16)  # tubelet for raw pixels, without a model
DEFAULT_STRATEGY: Final = "redundancy-robust"
COMPARED_STRATEGIES: Final = ("random", "tube", "running-cell", DEFAULT_STRATEGY)  # EVEREST Figure 8
COMPARED_SCORES: Final[tuple[ScoreName, ...]] = ("frame-difference", "random", "learned")  # LVMAE Figure 3


@torch.inference_mode()
def apply_strategies(
    clip: Tensor,
    strategies: Sequence[tuple[str, Strategy]],
    *,
    model: AnyModel | None,
    embed: Embedding,
    input_kind: ModelInput = "frames",
    seed: int,
) -> list[ClipMask]:
    """Apply strategies, each given with its title, to a clip (C, T, H, W) uint8.

    Args:
        model: an autoencoder also predicts; None: raw pixels measure change.
        input_kind: the kind of input without a model; a model has its own kind.
    """
    grid = TokenGrid.of_clip(frames=clip.size(1), size=(clip.size(2), clip.size(3)), tubelet=embed.tubelet)
    x = embed.pixels.normalize(clip)[None]  # (1, C, T, H, W)
    if isinstance(model, TokenModel):
        seen, scorer = model.to_input(x), model.scorer
    else:
        seen = x if input_kind == "frames" else frame_differences(x, embed.pixels)
        scorer = FrozenTokenizer.wrap(model).scores if isinstance(model, AdaptiveTokenizer) else None
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, grid.num_tokens), dtype=np.float32))
    masks: list[ClipMask] = []
    for title, strategy in strategies:
        importance = measure_importance(strategy, seen, embed, scorer) if strategy.uses_importance else None
        selection = strategy(grid, importance=importance, noise=noise)
        num_visible, num_targets = selection.visible.size(1), selection.target.size(1)
        if not num_visible and (not num_targets or isinstance(model, MaskedAutoencoder)):
            name = strategy.strategy
            raise RecipeError(f"--keep: {name} keeps none of the tokens that are seen; keep more")
        predicted = None
        # Predicted features have no pixels to show.
        if (
            num_targets
            and isinstance(model, MaskedAutoencoder)
            and not isinstance(model.targets, FeatureTargets)
        ):
            predicted = _inpaint(model, x, selection, model(x, selection=selection).prediction)
        masks.append(_make_mask(title, strategy, x, selection, importance, embed, predicted))
    return masks


@torch.inference_mode()
def apply_model(model: MaskedAutoencoder, clip: Tensor, *, noise: Tensor) -> ClipMask:
    """Apply an autoencoder with its own strategy: the tokens that it keeps, sees and predicts.

    Args:
        clip: (C, T, H, W) uint8, or the candidate frames that the model draws a clip from.
        noise: (model.noise_layout.total,) uniform in [0, 1).
    """
    strategy, embed, device = model.strategy, model.embedding, model.mask_token.device
    out = model(model.pixels.normalize(clip.to(device))[None], noise=noise[None].to(device))
    importance = None
    if strategy.uses_importance:
        importance = measure_importance(strategy, model.to_input(out.frames), embed, model.scorer)
    predicted = _inpaint(model, out.frames, out.selection, out.prediction)
    return _make_mask(strategy.strategy, strategy, out.frames, out.selection, importance, embed, predicted)


def _make_mask(
    title: str,
    strategy: Strategy,
    x: Tensor,
    selection: TokenSelection,
    importance: Tensor | None,
    embed: Embedding,
    predicted: Tensor | None,
) -> ClipMask:
    """The tokens of a normalized clip (1, C, T, H, W) in a selection."""
    return ClipMask(
        title=title,
        strategy=strategy,
        grid=TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet),
        kept=torch.cat([selection.visible[0], selection.target[0]]).unique().cpu(),
        visible=selection.visible[0].cpu(),
        importance=None if importance is None else importance[0].cpu(),
        frames=_to_frames(embed.pixels.unnormalize(x)),
        predicted=predicted,
    )


def _inpaint(model: MaskedAutoencoder, x: Tensor, selection: TokenSelection, prediction: Tensor) -> Tensor:
    """Complete the visible tokens with the predicted targets: frames (T, H, W, 3)."""
    inputs, tubelet = model.to_input(x), model.embedding.tubelet
    patches = patchify(model.pixels.unnormalize(inputs), tubelet)[0]  # (N, C, t, p, q)
    completed = torch.full_like(patches, HIDDEN_GRAY)
    completed[selection.target[0]] = model.targets.as_pixels(prediction, inputs, selection.target, tubelet)[0]
    completed[selection.visible[0]] = patches[selection.visible[0]]
    return _to_frames(unpatchify(completed[None], model.encoder.grid))


def _to_frames(clip: Tensor) -> Tensor:
    """A clip (1, C, T, H, W) as frames (T, H, W, 3) in [0, 1] on the CPU."""
    return to_rgb(clip[0].movedim(0, -1).clamp(0, 1).cpu())


def find_embedding(model: TokenModel | AdaptiveTokenizer | None) -> Embedding:
    """The embedding that measures the change of tokens: a model's, or raw pixels."""
    if isinstance(model, TokenModel):
        return model.embedding
    return RawPixels(PIXEL_TUBELET if model is None else model.tubelet)


def scale_size(
    model: AnyModel | None, size: int | tuple[int, int], video: VideoInfo, *, multiples: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of frames: a transformer's, otherwise from `size`, rounded to `multiples`."""
    if isinstance(model, TokenModel):
        encoder = model.encoder
        _, p, q = encoder.patch_embed.tubelet
        return encoder.grid.h * p, encoder.grid.w * q
    if not isinstance(size, int):
        return size
    sides = (video.height, video.width)
    scale = size / min(sides)
    height, width = (max(round(side * scale / n), 1) * n for side, n in zip(sides, multiples, strict=True))
    return height, width


@dataclass(frozen=True, kw_only=True)
class MaskClip:
    """The clip of a video that masks are drawn on; a transformer has its own frames, size and input."""

    frames: int = 16  # T
    stride: int = 4  # frames of the video, or frames at `fps`
    size: int | tuple[int, int] = 224  # pixels of the shorter side, or height and width
    fps: float | None = None
    sampling: str = "dense"  # how frames are sampled (everest.data.frames.SAMPLINGS)
    input_kind: ModelInput = "frames"


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """The strategies to draw, with their titles, and the clip of a video to draw them on."""

    strategies: Sequence[tuple[str, Strategy]]
    clip: MaskClip
    model: AnyModel | None  # None: raw pixels
    embed: Embedding  # the embedding that measures change

    def draw(
        self, video: Path, folder: Path, *, read: Sequence[Path], overwrite: bool, seed: int
    ) -> list[dict[str, Any]]:
        """Draw a clip in the middle of a video into VIDEO-mask.png; returns a --json row per strategy.

        Args:
            read: the inputs of the command, which no figure may replace.
            seed: seed of random selections.
        """
        path = folder / f"{video_name(video)}-mask.png"
        refuse_inputs(path, read)
        check_new_file(path, overwrite=overwrite)
        info, model, settings = video_info(video), self.model, self.clip
        cell = max(strategy.cell for _, strategy in self.strategies)
        _, height, width = self.embed.tubelet
        views = EvalViews(
            frames=model.encoder.num_frames if isinstance(model, TokenModel) else settings.frames,
            stride=settings.stride,
            size=scale_size(model, settings.size, info, multiples=(cell * height, cell * width)),
            clips=1,
            crops=1,
            sampling=settings.sampling,
            fps=settings.fps,
            mean=self.embed.pixels.mean,
            std=self.embed.pixels.std,
        )
        sample = Sample(path=str(video))
        (clip,) = views(sample, np.random.default_rng(0), "auto").frames  # (C, T, H, W) uint8
        (frame_ids,) = views.windows(read_footage(sample, settings.fps)).tolist()
        masks = apply_strategies(
            clip, self.strategies, model=model, embed=self.embed, input_kind=settings.input_kind, seed=seed
        )
        embedding = "pixels" if model is None else "checkpoint"
        title = make_mask_title(masks[0]) if len(masks) == 1 else "tokens by strategy and keep ratio"
        measured = "" if all(mask.importance is None for mask in masks) else f"; measured on the {embedding}"
        source = f"{video.name}, frames {frame_ids[0]} to {frame_ids[-1]} of {info.num_frames}"
        title = f"{source}\n{title}{measured}"
        draw_rows(path, make_figure_rows(masks), slices=masks[0].grid.t, title=title, numbers=frame_ids)
        shared = {"embedding": embedding, "written": [str(path)], "frames": frame_ids}
        shared["frames_total"] = info.num_frames
        return [{"video": str(video), **mask.to_dict(), **shared} for mask in masks]


def request_masks(
    opened: LoadedModel | None,
    recipe: Recipe | None,
    *,
    strategy: str | None,
    ratios: Sequence[float],
    compare: bool,
    given_clip: Mapping[str, Any],
) -> MaskRequest:
    """Turn the options of `visualize-mask` into strategies and clips.

    Args:
        opened, recipe: a model and a recipe have their own clips and strategy; the other options change them.
        ratios: keep ratios, one row each; none: the strategy's own.
        compare: draw the common strategies or, for a tokenizer, other scores next to its own.
        given_clip: the values of frames, stride and size that the user gave, by name.
    """
    if opened is not None and recipe is not None:
        raise RecipeError("--recipe: a checkpoint has its own clips; leave out --recipe or --checkpoint")
    module: TokenModel | AdaptiveTokenizer | None = None
    if opened is not None:
        module = opened.module if isinstance(opened.module, AdaptiveTokenizer) else opened.transformer
    default, default_clip = _find_defaults(opened, recipe, given_clip)
    scores = default if isinstance(module, AdaptiveTokenizer) else None
    if scores is not None:
        if strategy not in (None, scores.strategy):
            raise RecipeError(f"--strategy: a tokenizer's scores choose by {scores.strategy}; leave it out")
        strategy = None
    if compare and (strategy is not None or len(ratios) > 1):
        raise RecipeError("--compare takes one --keep, and no --strategy")
    clip = replace(default_clip, **given_clip)
    if "stride" in given_clip:
        clip = replace(clip, sampling="dense")  # the other samplings have no stride
    rows: list[tuple[str, Strategy]] = []
    if isinstance(scores, LearnedImportance):
        for ratio in ratios or [scores.keep_ratio]:
            compared = COMPARED_SCORES if compare else COMPARED_SCORES[-1:]
            rows += [(score, replace(scores, score=score, keep_ratio=ratio)) for score in compared]
    else:
        rows = [(row.strategy, row) for row in _make_strategies(default, strategy, ratios, compare)]
    embed = find_embedding(module) if recipe is None else RawPixels(recipe.model.tubelet, recipe.data.pixels)
    return MaskRequest(strategies=rows, clip=clip, model=module, embed=embed)


def _find_defaults(
    opened: LoadedModel | None, recipe: Recipe | None, given_clip: Mapping[str, Any]
) -> tuple[Strategy | None, MaskClip]:
    """The strategy and the clips of a recipe's pre-training, of a tokenizer, or of a transformer.

    `given_clip`, as in `request_masks`, must fit the checkpoint.
    """
    if recipe is not None:
        data, section = recipe.data, recipe.pretrain
        clip = MaskClip(frames=data.frames, stride=section.stride, size=data.frame_size, fps=data.fps)
        return section.selection, replace(clip, sampling=section.sampling, input_kind=recipe.model.input)
    if opened is None:
        return None, MaskClip()
    if isinstance(opened.module, AdaptiveTokenizer):
        window = opened.module.window
        if given_clip.get("frames", window) % window:
            raise RecipeError(f"--frames {given_clip['frames']}: give a multiple of the tokenizer's {window}")
        frames = -(-MaskClip.frames // window) * window
        scores = LearnedImportance(mask_ratio=1.0, keep_ratio=0.1, random_ratio=0.0)
        return scores, MaskClip(frames=frames, size=min(opened.spec.size))
    model, trained = opened.transformer, find_training_clip(opened)
    for name, side in (("frames", model.encoder.num_frames), ("size", min(opened.spec.size))):
        if given_clip.get(name, side) != side:
            raise RecipeError(f"--{name} {given_clip[name]}: the model of --checkpoint takes {side}")
    strategy = model.strategy.at_evaluation() if isinstance(model, SelectingModel) else model.strategy
    if trained is None:
        return strategy, MaskClip()
    return strategy, MaskClip(stride=trained.stride, sampling=trained.sampling, fps=trained.fps)


def _make_strategies(
    default: Strategy | None, name: str | None, ratios: Sequence[float], compare: bool
) -> list[Strategy]:
    """The given strategy at each keep ratio; with `compare`, common strategies, the last one at that ratio.

    The default is the strategy of the checkpoint or recipe, if it accepts the ratios.
    """
    if compare:
        *masks, ranked = (make_strategy(common, {}) for common in COMPARED_STRATEGIES)
        return [*masks, _with_ratio(ranked, ratios[0]) if ratios else ranked]
    fits = not (ratios and isinstance(default, AllTokens))
    strategy = default if name is None and fits else None
    strategy = strategy or make_strategy(name or DEFAULT_STRATEGY, {})
    return [_with_ratio(strategy, ratio) for ratio in ratios] or [strategy]


def _with_ratio(strategy: Strategy, ratio: float) -> Strategy:
    """The strategy with this keep ratio; at most a third of the kept tokens is visible, as in recipes."""
    if not isinstance(strategy, TopK):
        return strategy.keeping(ratio)
    third = float(Decimal(str(ratio)) / 3)  # a third of the decimal number: 0.1 for 0.3, not slightly less
    return replace(strategy, keep_ratio=ratio, visible_ratio=min(strategy.visible_ratio or ratio, third))
