"""`visualize-mask` on one video: read its windows, compute their masks, write the requested figure.

Figures are still (PNG), animated (GIF, H.264) or interactive (HTML).

T frames, H W pixels.
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
from everest.figures.mask_page import write_page
from everest.figures.masks import TUBELET, FigureRequest, MaskView, view_masks
from everest.figures.pictures import HEAT, draw_views, rows_of
from everest.methods.selector import Selector
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.system.files import check_new_file, refuse_inputs, write_atomically
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.reader import probe
from everest.video.writer import write_video

FPS: Final = 8  # of animations, slow enough to follow the tokens
GAP: Final = 4  # pixels between panels
Format = Literal["png", "gif", "mp4", "html"]


@dataclass(frozen=True, kw_only=True)
class MaskRequest(FigureRequest):
    """The strategies to draw, with their titles, and the windows of a video to draw them on."""

    selectors: Sequence[tuple[str, Selector]]
    windows: int

    def clips(self, video: Path) -> Tensor:
        """Read windows spread over a video, (windows, 3, T, H, W) uint8; a single window is in its middle.

        Raises:
            VideoError: the video cannot be read.
            RecipeError: `frames` do not fit the tokenizer.
        """
        frames, tubelet = self.frames, TUBELET
        if isinstance(self.model, MaskedAutoencoder | VideoClassifier):
            frames = self.model.encoder.num_frames
        elif isinstance(self.model, AdaptiveTokenizer):
            tubelet = self.model.tubelet
            if frames % self.model.window:
                raise RecipeError(f"--frames: {frames} do not divide into windows of {self.model.window}")
        cell = max((selector.cell for _, selector in self.selectors), default=1)
        size = self.frame_size(probe(video), multiples=(cell * tubelet[1], cell * tubelet[2]))
        views = EvalViews(
            frames=frames, stride=self.stride, size=size, clips=self.windows, crops=1, sampling="dense"
        )
        return views(Sample(path=str(video)), np.random.default_rng(0), "auto").frames


def write_mask_figures(
    video: Path, request: MaskRequest, out: Path, kind: Format, *, read: Sequence[Path], overwrite: bool
) -> list[dict[str, Any]]:
    """Write a figure of each window of a video to the folder `out`; returns the values of --json.

    Args:
        read: all inputs of the command, which no figure may replace.
    Raises:
        DataError: the video cannot be read.
        RecipeError: a figure exists already, or the strategies do not fit the clip.
    """
    clips = request.clips(video)
    numbers = [f"-{i + 1}" for i in range(len(clips))] if len(clips) > 1 else [""]
    paths = [out / f"{video.stem}-mask{number}.{kind}" for number in numbers]
    for path in paths:
        refuse_inputs(path, read, option="--output")
        check_new_file(path, option="--output", overwrite=overwrite)
    title = request.selectors[0][0].replace("\n", ", ") if len(request.selectors) == 1 else "kept tokens"
    if isinstance(request.model, AdaptiveTokenizer):
        title = f"{video.name}: {title}; learned: by the tokenizer's scores"
    else:
        source = "pixels (no checkpoint)" if request.model is None else "the checkpoint's embedding"
        title = f"{video.name}: {title}; change measured on {source}"
    embedding = "pixels" if request.model is None else "checkpoint"
    documents = []
    for path, clip in zip(paths, clips, strict=True):
        views = view_masks(clip, request.selectors, model=request.model, seed=request.seed)
        if kind == "png":
            draw_views(path, views, title=title)
        elif kind == "html":
            write_page(path, views, clip.movedim(0, -1), title=title, seed=request.seed)
        else:
            _write_animation(path, views)
        documents += [
            {"video": str(video), **view.to_dict(), "embedding": embedding, "written": [str(path)]}
            for view in views
        ]
    return documents


def _write_animation(path: Path, views: Sequence[MaskView]) -> None:
    """Write the rows of the figure next to each other, frame by frame: an endless GIF, or H.264."""
    panels = []
    for _, frames in rows_of(views):
        if frames.dim() == 3:
            scaled = frames / frames.max().clamp_min(torch.finfo(torch.float32).tiny)
            frames = torch.from_numpy(mpl.colormaps[HEAT](scaled.numpy())[..., :3]).float()
        panels += [torch.ones(*frames.shape[:2], GAP, 3), frames]
    joined = torch.cat(panels[1:], dim=2)  # (T, H, W', 3): no gap before the first panel
    even = joined[:, : joined.size(1) // 2 * 2, : joined.size(2) // 2 * 2]  # as H.264 requires
    animation = (even * 255).round().to(torch.uint8)

    def write(part: Path) -> None:
        if path.suffix == ".gif":
            first, *others = (Image.fromarray(frame.numpy()) for frame in animation)
            first.save(part, format="GIF", save_all=True, append_images=others, duration=1000 // FPS, loop=0)
        else:
            with_suffix = part.with_suffix(".mp4")  # the suffix selects the container
            write_video(with_suffix, animation, FPS)
            with_suffix.replace(part)

    write_atomically(path, write)
