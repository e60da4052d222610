"""Information-intensive frame selection on one video: candidates, counts, probabilities, drawn frames.

The figure follows EVEREST's Figures 3 and 10.

S candidate slices (pairs of p = 2 frames), t slices of a clip, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from everest.data.crops import resize
from everest.data.footage import footage_of
from everest.data.frames import spread_frames
from everest.errors import DataError
from everest.figures.drawing import COLORS, in_colors, png_figure
from everest.figures.legend import SMALL, Legend, add_words, range_text, share_text
from everest.figures.masks import TUBELET, FigureRequest, embedding_of
from everest.lists.sample import Sample
from everest.methods.frame_selection import draw_slices, kept_per_slice, num_candidates
from everest.methods.grid import TokenGrid
from everest.methods.strategies import FrameDifference, RedundancyRobust
from everest.models.spec import Transformer
from everest.system.files import check_new_file, refuse_inputs
from everest.video.reader import probe, read_frames

COLUMNS: Final = 8  # candidates in a row
MOST_LABELS: Final = 24  # under the bars
FADED: Final = 0.72  # how far a frame that was not drawn is faded to white
DRAWN, NOT_DRAWN = COLORS[0], "#BBBBBB"
UNDRAWN_TEXT: Final = "#666666"


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """The candidates of one video, and those that were drawn for a clip."""

    request: FrameDraw
    video: Path
    frames_total: int
    numbers: list[tuple[int, ...]]  # S: frame numbers of each candidate slice
    frames: Tensor  # (S * p, H, W, 3) uint8, the candidates; gray if the model takes luma
    counts: Tensor  # (S,) kept tokens
    num_tokens: int  # of all candidates
    drawn: Tensor  # (t,) candidate numbers, ascending

    def to_dict(self) -> dict[str, Any]:
        """Return the values of --json."""
        selected = [self.numbers[i] for i in self.drawn.tolist()]
        counts = self.counts.tolist()
        total = max(sum(counts), 1)
        return {
            "video": str(self.video),
            "frames_total": self.frames_total,
            "alpha": self.request.alpha,
            "candidate_pairs": [list(pair) for pair in self.numbers],
            "counts": counts,
            # Of each candidate in the first draw: c_i / sum of c (EVEREST §4.2).
            "probabilities": [round(count / total, 6) for count in counts],
            "selected_pairs": [list(pair) for pair in selected],
            "frames": [number for pair in selected for number in pair],
            "seed": self.request.seed,
            "align": self.request.selector.align,
            "cuts": self.request.selector.cuts,
        }


@dataclass(frozen=True, kw_only=True)
class FrameDraw(FigureRequest):
    """How to draw a clip of `frames` frames from a video.

    Args:
        alpha: `alpha` times `frames` are candidates.
        whole_video: spread the candidates over the whole video; else they are `stride` apart, in its middle.
    """

    selector: RedundancyRobust | FrameDifference
    alpha: float
    whole_video: bool
    model: Transformer | None

    def view(self, video: Path) -> FrameView:
        """Draw frames from a video."""
        embed = embedding_of(self.model)
        pair = embed.tubelet[0]
        slices = self.frames // pair
        num_slices = num_candidates(slices, self.alpha)
        info, footage = probe(video), footage_of(Sample(path=str(video)), self.fps)
        count = footage.num_frames
        wanted = num_slices * pair
        if count < wanted:
            rate = "" if self.fps is None else f" at {self.fps:g} per second"
            raise DataError(
                f"{video}: {count} frames{rate}, fewer than the {wanted} candidates; "
                "choose a smaller --frames or --alpha"
            )
        if self.whole_video:
            chosen = spread_frames(count, wanted, 0.5)
        else:
            stride = min(self.stride, count // wanted)
            start = (count - ((wanted - 1) * stride + 1)) // 2
            chosen = start + stride * np.arange(wanted)
        ids = footage.numbers(chosen).tolist()
        frames = read_frames(video, ids, channels=embed.pixels.channels)  # (S * p, H, W, C)
        size = self.frame_size(info, multiples=TUBELET[1:])
        x = embed.pixels.normalize(resize(frames, size, antialias=True))[None]
        x = x if self.model is None else self.model.to_input(x)
        grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
        counts = kept_per_slice(self.selector, self.selector.importance(x, embed), grid)  # (1, S)
        uniform = np.random.default_rng(self.seed).random((1, num_slices), dtype=np.float32)
        (drawn,) = draw_slices(counts, torch.from_numpy(uniform), slices)  # (t,)
        return FrameView(
            request=self,
            video=video,
            frames_total=info.frames,
            numbers=[tuple(ids[i : i + pair]) for i in range(0, len(ids), pair)],
            frames=in_colors(frames),
            counts=counts[0],
            num_tokens=grid.num_tokens,
            drawn=drawn,
        )


def draw_selection(path: Path, view: FrameView) -> Figure:
    """Draw a PNG: the first frame of every candidate pair, faded unless drawn, and their counts below."""
    num_pairs = len(view.numbers)
    rows = -(-num_pairs // COLUMNS)
    height, width = view.frames.shape[1:3]
    drawn = set(view.drawn.tolist())
    legend = _legend(view)
    column = min(1.5 * max(width / height, 0.6), 1.8)  # inches
    line = column * height / width + 0.35
    size = (column * COLUMNS + 0.8, line * rows + 2.6 + 0.18 * len(legend))
    names = [range_text(pair) for pair in view.numbers]
    with png_figure(path, size, points=9, dpi=110, framed=True, tight=False) as figure:
        grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=[line] * rows + [1.7])
        first_frames = view.frames[:: len(view.numbers[0])].numpy() / 255
        for number, (frame, name) in enumerate(zip(first_frames, names, strict=True)):
            ax = figure.add_subplot(grid[divmod(number, COLUMNS)])
            ax.axis("off")
            ax.imshow(frame if number in drawn else frame + (1 - frame) * FADED)
            color = DRAWN if number in drawn else UNDRAWN_TEXT
            ax.set_title(f"frames {name}", fontsize=SMALL, color=color)
        counts = figure.add_subplot(grid[rows, :])
        colors = [DRAWN if number in drawn else NOT_DRAWN for number in range(num_pairs)]
        counts.bar(range(num_pairs), view.counts.numpy(), color=colors)
        step = -(-num_pairs // MOST_LABELS)
        counts.set_xticks(range(0, num_pairs, step), names[::step], fontsize=SMALL)
        counts.set(xlabel="frames of the pair, counted from 0 in the video", ylabel="kept tokens")
        title = (
            f"{view.video.name}: {len(drawn)} of {num_pairs} candidate pairs are drawn "
            f"(alpha {view.request.alpha:g}), from a video of {view.frames_total} frames"
        )
        add_words(figure, title, legend)
    return figure


def _legend(view: FrameView) -> Legend:
    alpha = view.request.alpha
    selector = view.request.selector
    per_pair = view.num_tokens // len(view.numbers)
    kept = share_text(int(view.counts.sum()), view.num_tokens)
    legend: Legend = {
        "drawn for the clip; the first frame of each pair is shown": DRAWN,
        "candidate that was not drawn, its image is faded": NOT_DRAWN,
        f"alpha {alpha:g}: {alpha:g} times as many candidates as the clip needs": None,
        f"bars: kept tokens of each pair, at most {per_pair}; of all candidates: {kept}": None,
        "pairs are drawn at random: one with twice the kept tokens is twice as likely to be drawn next": None,
    }
    if selector.align != "none":
        motion = f"change is measured without the motion of the camera ({selector.align})"
        legend[f"{motion}; pairs that are far apart may show none"] = None
    if selector.cuts == "detect":
        legend["the first pair of a scene counts as the next one"] = None
    return legend


def write_figure(view: FrameView, folder: Path, *, read: Sequence[Path], overwrite: bool) -> Path:
    """Write the figure as VIDEO-frames.png to a folder; returns its path.

    Args:
        read: all videos of the command; those that are folders of images may not get more images.
    """
    image_folders = [video for video in read if video.resolve() == folder.resolve()]
    refuse_inputs(folder, image_folders, option="--picture")
    path = folder / f"{view.video.stem}-frames.png"
    check_new_file(path, option="--picture", overwrite=overwrite)
    draw_selection(path, view)
    return path
