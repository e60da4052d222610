"""`visualize-mask`: choose the strategies and the clip, compute the masks of a video, draw the figure.

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from everest.checkpoints.describe import trained_clip
from everest.checkpoints.load import AnyModel, LoadedModel
from everest.config.recipe import make_strategy
from everest.config.settings import Recipe
from everest.config.values import Input
from everest.data.footage import footage_of
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.figures.masks import apply_strategies, draw_rows, embedding_of, mask_title, rows_of, scaled_size
from everest.lists.sample import Sample
from everest.methods.importance import Embedding, RawPixels
from everest.methods.selection import Strategy, TopK
from everest.methods.strategies import AllTokens, LearnedImportance, ScoreName
from everest.models.classifier import SelectingModel
from everest.models.clip_spec import VideoModel
from everest.system.files import check_new_file, refuse_inputs
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.facts import VideoInfo
from everest.video.folders import video_name
from everest.video.reader import probe

DEFAULT: Final = "redundancy-robust"
COMPARED: Final = ("random", "tube", "running-cell", DEFAULT)  # EVEREST Figure 8
SCORES: Final[tuple[ScoreName, ...]] = ("frame-difference", "random", "learned")  # LVMAE Figure 3


@dataclass(frozen=True, kw_only=True)
class MaskClip:
    """The clip of a video that masks are drawn on; a transformer has its own frames, size and input."""

    frames: int = 16  # T
    stride: int = 4  # in frames of the video, or in frames at `fps`
    size: int | tuple[int, int] = 224  # pixels of the shorter side, or height and width
    fps: float | None = None
    sampling: str = "dense"  # of the frames (everest.data.frames.SAMPLINGS)
    input_kind: Input = "frames"


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """The strategies to draw, with their titles, and the clip of a video to draw them on."""

    strategies: Sequence[tuple[str, Strategy]]
    clip: MaskClip
    seed: int
    model: AnyModel | None  # None: raw pixels
    embed: Embedding  # measures change

    def draw(
        self, video: Path, folder: Path, *, read: Sequence[Path], overwrite: bool
    ) -> list[dict[str, Any]]:
        """Draw a clip in the middle of a video into VIDEO-mask.png; returns a --json row per strategy.

        No figure may replace one of the inputs of the command, `read`.
        """
        path = folder / f"{video_name(video)}-mask.png"
        refuse_inputs(path, read)
        check_new_file(path, overwrite=overwrite)
        info = probe(video)
        clip, numbers = self._read_clip(video, info)
        kind = self.clip.input_kind
        masks = apply_strategies(
            clip, self.strategies, model=self.model, embed=self.embed, input_kind=kind, seed=self.seed
        )
        embedding = "pixels" if self.model is None else "checkpoint"
        title = mask_title(masks[0]) if len(masks) == 1 else "tokens by strategy and keep ratio"
        measured = "" if all(mask.importance is None for mask in masks) else f"; measured on the {embedding}"
        source = f"{video.name}, frames {numbers[0]} to {numbers[-1]} of {info.frames}"
        title = f"{source}\n{title}{measured}"
        draw_rows(path, rows_of(masks), slices=masks[0].grid.t, title=title, numbers=numbers)
        facts = {"embedding": embedding, "written": [str(path)], "frames": numbers}
        facts["frames_total"] = info.frames
        return [{"video": str(video), **mask.to_dict(), **facts} for mask in masks]

    def _read_clip(self, video: Path, info: VideoInfo) -> tuple[Tensor, list[int]]:
        """The clip (C, T, H, W) uint8 in the middle of a video, and the numbers of its T frames."""
        cell = max(strategy.cell for _, strategy in self.strategies)
        _, height, width = self.embed.tubelet
        make_views = EvalViews(
            frames=self.model.encoder.num_frames if isinstance(self.model, VideoModel) else self.clip.frames,
            stride=self.clip.stride,
            size=scaled_size(self.model, self.clip.size, info, multiples=(cell * height, cell * width)),
            clips=1,
            crops=1,
            sampling=self.clip.sampling,
            fps=self.clip.fps,
            mean=self.embed.pixels.mean,
            std=self.embed.pixels.std,
        )
        sample = Sample(path=str(video))
        (clip,) = make_views(sample, np.random.default_rng(0), "auto").frames
        (numbers,) = make_views.windows(footage_of(sample, self.clip.fps)).tolist()
        return clip, numbers


def request_masks(
    opened: LoadedModel | None,
    recipe: Recipe | None,
    *,
    strategy: str | None,
    ratios: Sequence[float],
    compare: bool,
    settings: Mapping[str, Any],
    given_clip: Mapping[str, Any],
    seed: int,
) -> MaskRequest:
    """Turn the options of `visualize-mask` into strategies and clips.

    Args:
        opened, recipe: have their own clips and strategy, which the other options change.
        ratios: keep ratios, one row each; none: the strategy's own.
        compare: draw the common strategies or, for a tokenizer, other scores next to its own.
        settings: of the strategy, by their names in a recipe.
        given_clip: the frames, stride and size that are given, by their names.
    """
    if opened is not None and recipe is not None:
        raise RecipeError("--recipe: a checkpoint has its own clips; leave out --recipe or --checkpoint")
    module: VideoModel | AdaptiveTokenizer | None = None
    if opened is not None:
        module = opened.module if isinstance(opened.module, AdaptiveTokenizer) else opened.transformer
    default, default_clip = _defaults(opened, recipe, given_clip)
    scores = default if isinstance(module, AdaptiveTokenizer) else None
    if scores is not None:
        if settings or strategy not in (None, scores.strategy):
            raise RecipeError(
                f"--strategy, --align, --cuts: a tokenizer's scores choose by {scores.strategy}; "
                "leave them out"
            )
        strategy = None
    if compare and (strategy is not None or settings or len(ratios) > 1):
        raise RecipeError("--compare takes one --keep, and no --strategy, --align or --cuts")
    clip = replace(default_clip, **given_clip)
    if "stride" in given_clip:
        clip = replace(clip, sampling="dense")  # the others have no stride
    embed = embedding_of(module) if recipe is None else RawPixels(recipe.model.tubelet, recipe.data.pixels)
    rows: list[tuple[str, Strategy]] = []
    if isinstance(scores, LearnedImportance):
        for ratio in ratios or [scores.keep_ratio]:
            compared = SCORES if compare else SCORES[-1:]
            rows += [(score, replace(scores, score=score, keep_ratio=ratio)) for score in compared]
    else:
        rows = [(each.strategy, each) for each in _strategies(default, strategy, ratios, settings, compare)]
    sees_camera = any(isinstance(chosen, TopK) and chosen.sees_camera for _, chosen in rows)
    if sees_camera and clip.input_kind == "differences":
        raise RecipeError("--align, --cuts: compare frames, and model.input of the recipe is differences")
    return MaskRequest(strategies=rows, clip=clip, seed=seed, model=module, embed=embed)


def _defaults(
    opened: LoadedModel | None, recipe: Recipe | None, given_clip: Mapping[str, Any]
) -> tuple[Strategy | None, MaskClip]:
    """The strategy and the clips of a recipe's pre-training, of a tokenizer, or of a transformer.

    `given_clip`, as in `request_masks`, must fit the checkpoint.
    """
    if recipe is not None:
        data = recipe.data
        stage = recipe.pretrain
        return stage.selection, MaskClip(
            frames=data.frames,
            stride=stage.stride,
            size=data.frame_size,
            fps=data.fps,
            sampling=stage.sampling,
            input_kind=recipe.model.input,
        )
    if opened is None:
        return None, MaskClip()
    if isinstance(opened.module, AdaptiveTokenizer):
        window = opened.module.window
        if given_clip.get("frames", window) % window:
            raise RecipeError(f"--frames {given_clip['frames']}: give a multiple of the tokenizer's {window}")
        frames = -(-MaskClip.frames // window) * window
        scores = LearnedImportance(mask_ratio=1.0, keep_ratio=0.1, random_ratio=0.0)
        return scores, MaskClip(frames=frames, size=min(opened.spec.size))
    model = opened.transformer
    trained = trained_clip(opened)
    for name, side in (("frames", model.encoder.num_frames), ("size", min(opened.spec.size))):
        if given_clip.get(name, side) != side:
            raise RecipeError(f"--{name} {given_clip[name]}: the model of --checkpoint takes {side}")
    strategy = model.strategy.at_evaluation() if isinstance(model, SelectingModel) else model.strategy
    if trained is None:
        return strategy, MaskClip()
    return strategy, MaskClip(stride=trained.stride, sampling=trained.sampling, fps=trained.fps)


def _strategies(
    default: Strategy | None,
    name: str | None,
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    compare: bool,
) -> list[Strategy]:
    """The given strategy at each keep ratio; to compare, the common ones, with the ratio of the last.

    Without one, it is the default of the checkpoint or the recipe, if that can have the ratios and settings.
    """
    if compare:
        *masks, ranked = (make_strategy(common, {}) for common in COMPARED)
        return [*masks, _with_ratio(ranked, ratios[0]) if ratios else ranked]
    fits = isinstance(default, TopK) or not (settings or (ratios and isinstance(default, AllTokens)))
    strategy = default if name is None and fits else None
    strategy = strategy or make_strategy(name or DEFAULT, {})
    if settings:
        strategy = make_strategy(strategy.strategy, {**vars(strategy), **settings})
    return [_with_ratio(strategy, ratio) for ratio in ratios] or [strategy]


def _with_ratio(strategy: Strategy, ratio: float) -> Strategy:
    """The strategy with this keep ratio; at most a third of the kept tokens is visible, as in recipes."""
    if not isinstance(strategy, TopK):
        return strategy.keeping(ratio)
    third = float(Decimal(str(ratio)) / 3)  # of the number as written: 0.1 of 0.3, not slightly less
    return replace(strategy, keep_ratio=ratio, visible_ratio=min(strategy.visible_ratio or ratio, third))
