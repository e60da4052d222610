"""A picture of a frame selection, as EVEREST's Figures 3 and 10, and the chosen frames as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everest.frame_view import FrameView
from everest.system.files import write_atomically

COLUMNS: Final = 8  # candidates side by side
DIMMED: Final = 0.72  # how far a frame that was not drawn goes towards white
DRAWN, LEFT = "#0072B2", "#BBBBBB"  # of colour-blind-safe palettes


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
