"""Information-intensive frame selection on one video: candidates, counts, probabilities, drawn frames.

The figure follows EVEREST's Figures 3 and 10. S candidate slices (pairs of frames), t slices of a clip,
N tokens, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everest.data.crops import resize
from everest.errors import DataError
from everest.figures.masks import Transformer
from everest.methods.frame_selection import draw_slices, kept_per_slice, num_candidates
from everest.methods.grid import TokenGrid
from everest.methods.importance import RawPixels
from everest.methods.strategies import FrameDifference, RedundancyRobust
from everest.system.files import write_atomically
from everest.video.pixels import normalize
from everest.video.reader import probe, read_frames


@dataclass(frozen=True, kw_only=True)
class FrameView:
    """The draw of one video's clip."""

    video: Path
    frames_total: int
    alpha: float
    seed: int
    numbers: list[tuple[int, ...]]  # S: frame numbers of each candidate slice
    frames: Tensor  # (S * p, H, W, 3) uint8, the candidates
    counts: Tensor  # (S,) kept tokens
    drawn: Tensor  # (t,) candidate numbers, ascending
    inclusion: Tensor | None  # (S,) share of D draws that took a candidate

    @property
    def probabilities(self) -> list[float]:
        """The chance of each candidate in the first draw: c_i / sum of c (EVEREST §4.2)."""
        total = max(int(self.counts.sum()), 1)
        return [round(count / total, 6) for count in self.counts.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        selected = [self.numbers[i] for i in self.drawn.tolist()]
        found: dict[str, Any] = {
            "video": str(self.video),
            "frames_total": self.frames_total,
            "alpha": self.alpha,
            "candidate_pairs": [list(pair) for pair in self.numbers],
            "counts": self.counts.tolist(),
            "probabilities": self.probabilities,
            "selected_pairs": [list(pair) for pair in selected],
            "frames": [number for pair in selected for number in pair],
            "seed": self.seed,
        }
        if self.inclusion is not None:
            found["inclusion"] = [round(share, 6) for share in self.inclusion.tolist()]
        return found


@dataclass(frozen=True, kw_only=True)
class FrameDraw:
    """How frames are drawn from a video.

    Args:
        frames: T, of the clip; `alpha` times as many are candidates.
        size: pixels of the shorter side at which change is measured without a model.
        draws: how often to draw for `inclusion`; 0 for never.
    """

    selector: RedundancyRobust | FrameDifference
    frames: int
    stride: int
    alpha: float
    size: int
    seed: int
    draws: int
    model: Transformer | None

    def view(self, video: Path) -> FrameView:
        """Read the middle of a video and draw.

        Raises:
            VideoError: the video cannot be read.
            DataError: it is shorter than the candidates at one frame a step.
        """
        embed = RawPixels((2, 16, 16)) if self.model is None else self.model.encoder.patch_embed
        pair = embed.tubelet[0]
        slices = self.frames // pair
        candidates = num_candidates(slices, self.alpha)
        info = probe(video)
        if info.frames < candidates * pair:
            raise DataError(
                f"{video}: {info.frames} frames, fewer than the {candidates * pair} candidates; "
                "choose a smaller --frames or --alpha"
            )
        stride = min(self.stride, info.frames // (candidates * pair))
        start = (info.frames - ((candidates * pair - 1) * stride + 1)) // 2
        ids = [start + stride * i for i in range(candidates * pair)]
        frames = read_frames(video, ids)  # (S * p, H, W, 3)
        x = normalize(resize(frames, self._size(info.height, info.width), antialias=True))[None]
        grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
        importance = self.selector.importance(x, embed)
        counts = kept_per_slice(self.selector, importance, grid)  # (1, S)
        uniform = torch.from_numpy(
            np.random.default_rng(self.seed).random((1 + self.draws, candidates), dtype=np.float32)
        )
        drawn = draw_slices(counts.expand(1 + self.draws, -1), uniform, slices)  # (1 + D, t)
        return FrameView(
            video=video,
            frames_total=info.frames,
            alpha=self.alpha,
            seed=self.seed,
            numbers=[tuple(ids[i : i + pair]) for i in range(0, len(ids), pair)],
            frames=frames,
            counts=counts[0],
            drawn=drawn[0],
            inclusion=_inclusion(drawn[1:], candidates) if self.draws else None,
        )

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.model is not None:
            encoder = self.model.encoder
            _, p, q = encoder.patch_embed.tubelet
            return encoder.grid.h * p, encoder.grid.w * q
        scale = self.size / min(height, width)
        return max(round(height * scale / 16), 1) * 16, max(round(width * scale / 16), 1) * 16


def _inclusion(drawn: Tensor, candidates: int) -> Tensor:
    """(S,) the share of the draws (D, t) in which each candidate was taken."""
    return torch.bincount(drawn.flatten(), minlength=candidates) / len(drawn)


COLUMNS: Final = 8  # candidates side by side
DIMMED: Final = 0.72  # how far a frame that was not drawn goes towards white
DRAWN, LEFT = "#0072B2", "#BBBBBB"  # of color-blind-safe palettes


def draw_selection(path: Path, view: FrameView) -> None:
    """A PNG: the first frame of every candidate pair, dimmed unless drawn, and the counts below."""
    candidates = len(view.numbers)
    rows = -(-candidates // COLUMNS)
    height, width = view.frames.shape[1:3]
    column = 1.5 * max(width / height, 0.6)
    with mpl.rc_context({"font.size": 9}):
        size = (column * COLUMNS + 0.4, (1.5 + 0.35) * rows + 2.4)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=[1.5] * rows + [1.7])
        axes = [figure.add_subplot(grid[divmod(number, COLUMNS)]) for number in range(candidates)]
        for ax in axes:
            ax.axis("off")
        drawn = set(view.drawn.tolist())
        length = len(view.numbers[0])
        for number, (ax, pair) in enumerate(zip(axes, view.numbers, strict=True)):
            frame = view.frames[number * length].numpy() / 255
            ax.imshow(frame if number in drawn else frame + (1 - frame) * DIMMED)
            ax.set_title(f"{pair[0]}-{pair[-1]}", fontsize=8, color=DRAWN if number in drawn else "#777777")
        _draw_counts(figure.add_subplot(grid[rows, :]), view, drawn)
        figure.suptitle(f"{view.video.name}: {len(drawn)} of {candidates} pairs drawn (alpha {view.alpha:g})")
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _draw_counts(ax: Axes, view: FrameView, drawn: set[int]) -> None:
    places = np.arange(len(view.numbers))
    colours = [DRAWN if place in drawn else LEFT for place in places]
    ax.bar(places, view.counts.numpy(), color=colours)
    ax.set_xticks(places, [str(pair[0]) for pair in view.numbers], fontsize=7)
    ax.set_xlabel("first frame of the pair")
    ax.set_ylabel("kept tokens")
    if view.inclusion is not None:
        other = ax.twinx()
        other.plot(places, view.inclusion.numpy(), "o", color="#D55E00", markersize=4)
        other.set(ylabel="share of draws (dots)", ylim=(0, 1.05))


def frame_files(folder: Path, view: FrameView) -> dict[Path, Tensor]:
    """The drawn frames, (H, W, 3) uint8 each, by files named by the video and the frame's number."""
    length = len(view.numbers[0])
    return {
        folder / f"{view.video.stem}-{number:06d}.png": view.frames[place * length + offset]
        for place in view.drawn.tolist()
        for offset, number in enumerate(view.numbers[place])
    }


def write_frames(frames: Mapping[Path, Tensor]) -> None:
    """Write `frame_files` as PNG."""
    for path, frame in frames.items():
        picture = Image.fromarray(frame.numpy())
        write_atomically(path, lambda part, picture=picture: picture.save(part, format="PNG"))
