"""Animations of the masks of a clip: an endless GIF, or H.264.

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everest.figures.drawing import any_script, plain
from everest.figures.legend import LINE, SMALL, Legend, ShownFrames, add_words, legend_of
from everest.figures.masks import MaskView
from everest.figures.pictures import FigureRow, rows_of, show_frame
from everest.system.files import atomic_file
from everest.video.writer import write_video

FPS: Final = 8  # slow enough to follow the tokens
WIDTH: Final = 10.5  # inches, at most
PANEL: Final = 2.4  # inches, the shorter side of a panel
DPI: Final = 100
STYLE: Final[Any] = {"font.size": 9}


def write_animation(path: Path, views: Sequence[MaskView], *, title: str, source: ShownFrames) -> None:
    """Write the rows of the figure as panels with their titles and a legend, frame by frame."""
    legend = legend_of(views, numbered=True)
    frames = draw_frames(rows_of(views), title=f"{source}\n{title}", legend=legend, source=source)
    with atomic_file(path) as part:
        if path.suffix == ".gif":
            # Without k-means, the palette of the photographs turns the colors of the importance gray.
            first, *others = (Image.fromarray(frame.numpy()).quantize(kmeans=1) for frame in frames)
            first.save(part, format="GIF", save_all=True, append_images=others, duration=1000 // FPS, loop=0)
            return
        with_suffix = part.with_suffix(".mp4")  # the suffix selects the container
        try:
            write_video(with_suffix, frames, FPS)
            with_suffix.replace(part)
        finally:
            with_suffix.unlink(missing_ok=True)  # of an error


@any_script()
def draw_frames(rows: Sequence[FigureRow], *, title: str, legend: Legend, source: ShownFrames) -> Tensor:
    """Return (T, H, W, 3) uint8, of even height and width: all rows as panels, with the frame number."""
    frames = []
    with mpl.rc_context(STYLE):
        figure = animation_figure(rows, title=title, legend=legend)
        canvas = FigureCanvasAgg(figure)
        for frame, number in enumerate(source.numbers):
            figure.axes[0].set_xlabel(f"frame {number} of the video")
            for panel, row in zip(figure.axes, rows, strict=False):
                panel.images[0].set_data(row.frames[frame].numpy())
            canvas.draw()
            figure.set_layout_engine("none")  # after the first frame: nothing may move
            pixels = torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3])
            frames.append(pixels[: pixels.size(0) // 2 * 2, : pixels.size(1) // 2 * 2])  # as H.264 requires
    return torch.stack(frames)


def animation_figure(rows: Sequence[FigureRow], *, title: str, legend: Legend) -> Figure:
    """Return a figure of the first frame: a panel for each row, with its name and its note."""
    height, width = rows[0].frames.shape[1:3]
    scale = min(PANEL / min(height, width), WIDTH / 2 / width)
    lines = -(-len(rows) // max(int(WIDTH / (width * scale)), 2))
    columns = -(-len(rows) // lines)
    figure_width = max(width * scale * columns, 6)
    figure = Figure(figsize=(figure_width, 1), dpi=DPI, layout="compressed")
    notes = max(1, *(len(row.note.splitlines()) for row in rows))
    panel_height = height * scale + 0.4 + LINE * notes
    figure.set_figheight(panel_height * lines + add_words(figure, title, legend) + 0.45)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax in axes[len(rows) :]:
        ax.axis("off")
    for ax, row in zip(axes, rows, strict=False):
        show_frame(ax, row, 0)
        ax.set_title(plain(row.label))
        ax.set_xlabel(plain(row.note), fontsize=SMALL)
    return figure
