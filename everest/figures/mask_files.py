"""`visualize-mask` on one video: read its windows, compute their masks, write the requested figure.

Figures are still (PNG), animated (GIF, H.264) or interactive (HTML).

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from everest.config.values import Input
from everest.data.footage import footage_of
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.figures.animation import write_animation
from everest.figures.legend import ShownFrames, view_title
from everest.figures.mask_page import write_mask_page
from everest.figures.masks import TUBELET, FigureRequest, MaskView, embedding_of, view_masks
from everest.figures.pictures import draw_views
from everest.lists.sample import Sample
from everest.methods.selector import Selector
from everest.models.video_model import VideoModel
from everest.system.files import check_new_file, refuse_inputs
from everest.tokenizer.network import AdaptiveTokenizer
from everest.video.pixels import IMAGENET, PixelStatistics
from everest.video.reader import probe

Format = Literal["png", "gif", "mp4", "html"]


@dataclass(frozen=True, kw_only=True)
class MaskRequest(FigureRequest):
    """The strategies to draw, with their titles, and the windows of a video to draw them on.

    Args:
        sampling: of the frames of a window (everest.data.frames.SAMPLINGS).
        tubelet, pixels, input_kind: without a model, which has its own.
    """

    selectors: Sequence[tuple[str, Selector]]
    windows: int
    sampling: str = "dense"
    tubelet: tuple[int, int, int] = TUBELET
    pixels: PixelStatistics = IMAGENET
    input_kind: Input = "frames"

    def clips(self, video: Path) -> list[tuple[Tensor, ShownFrames]]:
        """Read windows spread over a video, (C, T, H, W) uint8 each; a single window is in its middle."""
        model, embed = self.model, embedding_of(self.model, self.tubelet, self.pixels)
        frames = model.encoder.num_frames if isinstance(model, VideoModel) else self.frames
        if isinstance(model, AdaptiveTokenizer) and frames % model.window:
            raise RecipeError(f"--frames: {frames} do not divide into windows of {model.window}")
        cell = max((selector.cell for _, selector in self.selectors), default=1)
        info, sample = probe(video), Sample(path=str(video))
        views = EvalViews(
            frames=frames,
            stride=self.stride,
            size=self.frame_size(info, multiples=(cell * embed.tubelet[1], cell * embed.tubelet[2])),
            clips=self.windows,
            crops=1,
            sampling=self.sampling,
            fps=self.fps,
            channels=embed.pixels.channels,
        )
        clips = views(sample, np.random.default_rng(0), "auto").frames
        footage = footage_of(sample, self.fps)
        missing = 0  # other samplings repeat frames evenly
        if self.sampling == "dense":
            missing = max(frames - -(-footage.num_frames // self.stride), 0)
        shown = {"video": video.name, "total": info.frames, "missing": missing, "fps": self.fps}
        return [
            (clip, ShownFrames(numbers=tuple(numbers), **shown))
            for clip, numbers in zip(clips, views.windows(footage).tolist(), strict=True)
        ]

    def views(self, clip: Tensor) -> list[MaskView]:
        """Apply the strategies to a clip (C, T, H, W) uint8."""
        return view_masks(
            clip,
            self.selectors,
            model=self.model,
            tubelet=self.tubelet,
            pixels=self.pixels,
            input_kind=self.input_kind,
            seed=self.seed,
        )

    @property
    def measured(self) -> str:
        """Name the source of the importance."""
        if isinstance(self.model, AdaptiveTokenizer):
            return "learned: by the tokenizer's scores"
        source = "pixels (no checkpoint)" if self.model is None else "the checkpoint's embedding"
        return f"change measured on {source}"

    def title(self, views: Sequence[MaskView]) -> str:
        """How the tokens of a figure were chosen."""
        text = view_title(views[0]) if len(views) == 1 else "tokens by strategy and keep ratio"
        return text if all(view.importance is None for view in views) else f"{text}; {self.measured}"


def write_mask_figures(
    video: Path, request: MaskRequest, out: Path, kind: Format, *, read: Sequence[Path], overwrite: bool
) -> list[dict[str, Any]]:
    """Write a figure of each window of a video to the folder `out`; returns the values of --json.

    Args:
        read: all inputs of the command, which no figure may replace.
    """
    if kind == "html" and any(getattr(selector, "slice_cap", None) for _, selector in request.selectors):
        raise RecipeError(
            "slice_cap: a page cannot show it, because its slider changes the kept tokens; use --format png"
        )
    clips = request.clips(video)
    numbers = [f"-{i + 1}" for i in range(len(clips))] if len(clips) > 1 else [""]
    paths = [out / f"{video.stem}-mask{number}.{kind}" for number in numbers]
    for path in paths:
        refuse_inputs(path, read, option="--output")
        check_new_file(path, option="--output", overwrite=overwrite)
    documents = []
    for path, (clip, source) in zip(paths, clips, strict=True):
        views = request.views(clip)
        if kind == "html":
            frames = clip.movedim(0, -1)
            write_mask_page(path, views, frames, measured=request.measured, source=source, seed=request.seed)
        else:
            write = draw_views if kind == "png" else write_animation
            write(path, views, title=request.title(views), source=source)
        documents += [
            {
                "video": str(video),
                **view.to_dict(),
                "embedding": "pixels" if request.model is None else "checkpoint",
                "written": [str(path)],
                "frames": list(source.numbers),
                "frames_total": source.total,
            }
            for view in views
        ]
    return documents
