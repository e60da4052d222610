"""`visualize-mask` on one video: read its windows, compute their masks, write the requested figure.

Figures are still (PNG), animated (GIF, H.264) or interactive (HTML).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everest.data.samples import Sample
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.figures.mask_page import strategy_ranks, write_page
from everest.figures.masks import AnyModel, MaskView, view_masks
from everest.figures.pictures import HEAT, draw_views, rows_of
from everest.methods.masks import RunningCell
from everest.methods.strategies import Selector
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.system.files import check_new_file, write_atomically
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.reader import probe
from everest.video.writer import write_video

FPS: Final = 8  # slow enough to request
GAP: Final = 4  # pixels between panels


def animation(views: Sequence[MaskView]) -> Tensor:
    """(T, H', W', 3) uint8: the rows of the figure next to each other, frame by frame; sizes are even."""
    panels = [_colored(frames) for _, frames in rows_of(views)]  # (T, H, W, 3) each
    length, height = panels[0].shape[:2]
    gap = torch.ones(length, height, GAP, 3)
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    joined = torch.cat(parts, dim=2)
    joined = joined[:, : height // 2 * 2, : joined.size(2) // 2 * 2]
    return (joined * 255).round().to(torch.uint8)


def _colored(frames: Tensor) -> Tensor:
    if frames.dim() == 4:
        return frames
    scaled = frames / frames.max().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.from_numpy(mpl.colormaps[HEAT](scaled.numpy())[..., :3]).float()


def write_gif(path: Path, views: Sequence[MaskView]) -> None:
    """Write the animation as an endless GIF."""
    images = [Image.fromarray(frame.numpy()) for frame in animation(views)]
    options = {"save_all": True, "append_images": images[1:], "duration": 1000 // FPS, "loop": 0}
    write_atomically(path, lambda part: images[0].save(part, format="GIF", **options))


def write_mp4(path: Path, views: Sequence[MaskView]) -> None:
    """Write the animation as H.264."""
    frames = animation(views)

    def write(part: Path) -> None:
        with_suffix = part.with_suffix(".mp4")  # it determines the container
        write_video(with_suffix, frames, FPS)
        with_suffix.replace(part)

    write_atomically(path, write)


Format = Literal["png", "gif", "mp4", "html"]


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """The strategies to show, the clips to show them on, and the model that measures.

    Args:
        selectors: strategies with their titles.
        size: pixels of the shorter side without a model, or with a tokenizer; another model has its own size.
    """

    selectors: Sequence[tuple[str, Selector]]
    frames: int
    stride: int
    size: int
    tubelet: tuple[int, int, int]
    windows: int
    seed: int
    model: AnyModel | None

    def clips(self, video: Path) -> Tensor:
        """(windows, 3, T, H, W) uint8: windows spread over the video; a single one is in its middle.

        Raises:
            VideoError: the video cannot be read.
        """
        frames, size = self._clip_size(video)
        views = EvalViews(
            frames=frames, stride=self.stride, size=size, clips=self.windows, crops=1, sampling="dense"
        )
        return views(Sample(path=str(video)), np.random.default_rng(0), "auto").frames

    def _clip_size(self, video: Path) -> tuple[int, tuple[int, int]]:
        if isinstance(self.model, MaskedAutoencoder | VideoClassifier):
            encoder = self.model.encoder
            _, p, q = encoder.patch_embed.tubelet
            return encoder.num_frames, (encoder.grid.h * p, encoder.grid.w * q)
        tubelet = self.tubelet
        if isinstance(self.model, AdaptiveTokenizer):
            tubelet = self.model.tubelet
            if self.frames % self.model.window:
                raise RecipeError(
                    f"--frames: {self.frames} do not divide into windows of {self.model.window}"
                )
        info = probe(video)
        scale = self.size / min(info.height, info.width)
        cell = 2 if any(isinstance(selector, RunningCell) for _, selector in self.selectors) else 1
        height, width = (
            max(round(side * scale / step), 1) * step
            for side, step in zip((info.height, info.width), (cell * p for p in tubelet[1:]), strict=True)
        )
        return self.frames, (height, width)


def report_masks(
    video: Path, request: MaskRequest, out: Path, kind: Format, *, overwrite: bool
) -> list[dict[str, Any]]:
    """Write a figure of each window of a video below the folder `out`; returns the values of --json.

    Raises:
        DataError: the video cannot be read.
        RecipeError: a figure exists already, or the strategies do not fit the clip.
    """
    clips = request.clips(video)
    names = [
        f"{video.stem}-mask" + (f"-{i + 1}" if len(clips) > 1 else "") + f".{kind}" for i in range(len(clips))
    ]
    for name in names:
        check_new_file(out / name, option="--output", overwrite=overwrite)
    documents = []
    for name, clip in zip(names, clips, strict=True):
        views = view_masks(
            clip, request.selectors, model=request.model, tubelet=request.tubelet, seed=request.seed
        )
        _write(out / name, clip, views, kind, title=_title(video, request), seed=request.seed)
        embedding = "pixels" if request.model is None else "checkpoint"
        documents += [
            {"video": str(video), **view.to_dict(), "embedding": embedding, "written": [str(out / name)]}
            for view in views
        ]
    return documents


def _title(video: Path, request: MaskRequest) -> str:
    content = request.selectors[0][0].replace("\n", ", ") if len(request.selectors) == 1 else "kept tokens"
    if isinstance(request.model, AdaptiveTokenizer):
        return f"{video.name}: {content}; learned: by the tokenizer's scores"
    measured = "pixels (no checkpoint)" if request.model is None else "the checkpoint's embedding"
    return f"{video.name}: {content}; change measured on {measured}"


def _write(
    path: Path, clip: Tensor, views: Sequence[MaskView], kind: Format, *, title: str, seed: int
) -> None:
    if kind == "png":
        draw_views(path, views, title=title)
    elif kind == "gif":
        write_gif(path, views)
    elif kind == "mp4":
        write_mp4(path, views)
    else:
        # Several keep ratios of a strategy are one entry: the page has a slider for the ratio.
        orders = {view.title.splitlines()[0]: view.order for view in views if view.order is not None}
        if not orders:
            raise RecipeError("a page needs a strategy that measures, such as redundancy-robust")
        strategies = strategy_ranks(orders, views[0].grid, seed=seed)
        keep = len(views[0].kept) / views[0].grid.num_tokens
        write_page(path, clip.movedim(0, -1), views[0].grid, strategies, title=title, keep=keep)
