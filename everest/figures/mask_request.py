"""`visualize-mask`: choose the strategies and the clip, compute the masks of a video, draw the figure.

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from everest.checkpoints.describe import trained_clip
from everest.checkpoints.load import LoadedModel
from everest.config.recipe import make_selector
from everest.config.settings import Recipe
from everest.config.values import Input
from everest.data.footage import footage_of
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.figures.masks import TUBELET, AnyModel, embedding_of, frame_size, view_masks
from everest.figures.pictures import draw_rows, rows_of, view_title
from everest.lists.sample import Sample
from everest.methods.learned import LearnedImportance, ScoreName
from everest.methods.ranked import ByChange
from everest.methods.selector import Selector
from everest.methods.strategies import AllTokens
from everest.models.video_model import SelectingModel, VideoModel
from everest.system.files import check_new_file, refuse_inputs
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.pixels import IMAGENET, PixelStatistics
from everest.video.reader import probe

DEFAULT: Final = "redundancy-robust"
DEFAULT_CLIP: Final = {"frames": 16, "stride": 4, "size": 224}
COMPARED: Final = ("random", "tube", "running-cell", DEFAULT)  # EVEREST Figure 8
SCORES: Final[tuple[ScoreName, ...]] = ("frame-difference", "random", "learned")  # LVMAE Figure 3


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """The strategies to draw, with their titles, and the clip of a video to draw them on.

    Args:
        frames: T, the length of a clip.
        stride: in frames of the video, or in frames at `fps`.
        size: pixels of the shorter side, or height and width, without a model or with a tokenizer; another
            model has its own size.
        model: measures change; None for raw pixels.
        sampling: of the frames of a clip (everest.data.frames.SAMPLINGS).
        tubelet, pixels, input_kind: without a model, which has its own.
    """

    selectors: Sequence[tuple[str, Selector]]
    frames: int
    stride: int
    size: int | tuple[int, int]
    seed: int
    model: AnyModel | None
    fps: float | None = None
    sampling: str = "dense"
    tubelet: tuple[int, int, int] = TUBELET
    pixels: PixelStatistics = IMAGENET
    input_kind: Input = "frames"

    def draw(
        self, video: Path, folder: Path, *, read: Sequence[Path], overwrite: bool
    ) -> list[dict[str, Any]]:
        """Write VIDEO-mask.png to a folder; returns the values of --json, one for each strategy.

        Args:
            read: all inputs of the command, which no figure may replace.
        """
        path = folder / f"{video.stem}-mask.png"
        refuse_inputs(path, read, option="--output")
        check_new_file(path, option="--output", overwrite=overwrite)
        model, embed = self.model, embedding_of(self.model, self.tubelet, self.pixels)
        cell, info = max((selector.cell for _, selector in self.selectors), default=1), probe(video)
        multiples = cell * embed.tubelet[1], cell * embed.tubelet[2]
        make_views = EvalViews(
            frames=model.encoder.num_frames if isinstance(model, VideoModel) else self.frames,
            stride=self.stride,
            size=frame_size(model, self.size, info, multiples=multiples),
            clips=1,  # in the middle of the video
            crops=1,
            sampling=self.sampling,
            fps=self.fps,
            channels=embed.pixels.channels,
        )
        sample = Sample(path=str(video))
        (clip,) = make_views(sample, np.random.default_rng(0), "auto").frames  # (C, T, H, W) uint8
        (numbers,) = make_views.windows(footage_of(sample, self.fps)).tolist()  # T
        views = view_masks(
            clip,
            self.selectors,
            model=model,
            tubelet=self.tubelet,
            pixels=self.pixels,
            input_kind=self.input_kind,
            seed=self.seed,
        )
        embedding = "pixels" if model is None else "checkpoint"
        title = view_title(views[0]) if len(views) == 1 else "tokens by strategy and keep ratio"
        source = f"{video.name}, frames {numbers[0]} to {numbers[-1]} of {info.frames}"
        measured = "" if all(view.importance is None for view in views) else f"; measured on the {embedding}"
        title = f"{source}\n{title}{measured}"
        draw_rows(path, rows_of(views), slices=views[0].grid.t, title=title, numbers=numbers)
        return [
            {
                "video": str(video),
                **view.to_dict(),
                "embedding": embedding,
                "written": [str(path)],
                "frames": numbers,
                "frames_total": info.frames,
            }
            for view in views
        ]


def request_masks(
    opened: LoadedModel | None,
    recipe: Recipe | None,
    *,
    strategy: str | None,
    ratios: Sequence[float],
    compare: bool,
    settings: Mapping[str, Any],
    clip: Mapping[str, Any],
    seed: int,
) -> MaskRequest:
    """Turn the options of `visualize-mask` into strategies and clips.

    Args:
        opened, recipe: have their own clips and strategy, which the other options change.
        ratios: keep ratios, one row each; none: the strategy's own.
        compare: draw the common strategies or, for a tokenizer, other scores next to its own.
        settings: of the strategy, by their names in a recipe.
        clip: frames, stride and size that are given.
    """
    if opened is not None and recipe is not None:
        raise RecipeError("--recipe: a checkpoint has its own clips; leave out --recipe or --checkpoint")
    module = None if opened is None else opened.module
    is_tokenizer = isinstance(module, AdaptiveTokenizer)
    values: dict[str, Any] = {**DEFAULT_CLIP}
    own: Selector | None = None
    if recipe is not None:
        own = recipe.pretrain.selection
        values |= {"frames": recipe.data.frames, "size": recipe.data.frame_size, "fps": recipe.data.fps}
        values |= {"sampling": recipe.pretrain.sampling, "stride": recipe.pretrain.stride}
        values |= {"tubelet": recipe.model.tubelet, "pixels": recipe.data.pixels}
        values |= {"input_kind": recipe.model.input}
    elif opened is not None and isinstance(module, AdaptiveTokenizer):
        own = LearnedImportance(mask_ratio=1.0, keep_ratio=0.1, random_ratio=0.0)
        window = module.window
        values |= {"size": min(opened.spec.size), "frames": -(-DEFAULT_CLIP["frames"] // window) * window}
        if clip.get("frames", window) % window:
            raise RecipeError(f"--frames {clip['frames']}: give a multiple of the tokenizer's {window}")
        if settings or strategy not in (None, own.strategy):
            raise RecipeError(
                f"--strategy, --align, --cuts, --slice-cap: a tokenizer's scores choose by {own.strategy}; "
                "leave them out"
            )
        strategy = None
    elif opened is not None:
        model = opened.transformer
        own = model.selector.at_evaluation() if isinstance(model, SelectingModel) else model.selector
        trained = trained_clip(opened)
        if trained is not None:
            values |= {"stride": trained.stride, "sampling": trained.sampling, "fps": trained.fps}
        for name, side in (("frames", model.encoder.num_frames), ("size", min(opened.spec.size))):
            if clip.get(name, side) != side:
                raise RecipeError(f"--{name} {clip[name]}: the model of --checkpoint takes {side}")
    if "stride" in clip:
        values["sampling"] = "dense"  # the others have no stride
    selectors = _selectors(own, strategy, ratios, settings, compare=compare, is_tokenizer=is_tokenizer)
    sees_camera = any(isinstance(chosen, ByChange) and chosen.sees_camera for _, chosen in selectors)
    if sees_camera and values.get("input_kind") == "differences":
        raise RecipeError("--align, --cuts: compare frames, and model.input of the recipe is differences")
    return MaskRequest(selectors=selectors, seed=seed, model=module, **values | dict(clip))


def _selectors(
    own: Selector | None,
    strategy: str | None,
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    *,
    compare: bool,
    is_tokenizer: bool,
) -> list[tuple[str, Selector]]:
    """The strategies to draw below each other, with their titles.

    Args:
        own: of the checkpoint or the recipe.
    """
    if compare and (strategy is not None or settings or len(ratios) > 1):
        raise RecipeError("--compare takes one --keep, and no --strategy, --align, --cuts or --slice-cap")
    if is_tokenizer and isinstance(own, LearnedImportance):
        return [
            (score, replace(own, score=score, keep_ratio=ratio))
            for ratio in ratios or [own.keep_ratio]
            for score in (SCORES if compare else SCORES[-1:])
        ]
    if compare:
        chosen = [make_selector(name, {}) for name in COMPARED]
        chosen[-1] = chosen[-1].showing(ratios[0]) if ratios else chosen[-1]
    else:
        can_show = isinstance(own, ByChange) or not (settings or (ratios and isinstance(own, AllTokens)))
        if strategy is None and own is not None and can_show:
            base = own
        else:
            base = make_selector(strategy or DEFAULT, {})
        if settings:
            base = make_selector(base.strategy, {**vars(base), **settings})
        chosen = [base.showing(ratio) for ratio in ratios] or [base]
    return [(selector.strategy, selector) for selector in chosen]
