"""Figures of masks as PNG, of a tokenizer's reconstructions (LVMAE Figure 3), and images inside a page.

T frames, H W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everest.figures.masks import GRAY, MaskView, spread
from everest.system.files import write_atomically
from everest.tokenizer.report import Example

COLUMNS: Final = 8  # most frames in a row
HEAT: Final = "cividis"  # also readable without color vision and in gray
PREDICTED: Final = "predicted"
PREDICTED_WITH_TRUTH: Final = "predicted*"
FOOTNOTE: Final = "* normalized predictions, with the true mean and std of each tubelet"

FigureRow = tuple[str, Tensor]  # label, and (T, H, W, 3) pixels or (T, H, W) importance


def rows_of(views: Sequence[MaskView]) -> list[FigureRow]:
    """The rows of a figure of one clip: everything for a single view, the kept tokens for several."""
    first = views[0]
    rows: list[FigureRow] = [("frames", first.frames)]
    if len(views) == 1:
        rows.append(("kept", first.kept_frames))
        if len(first.visible) < len(first.kept):
            rows.append(("seen", first.visible_frames))
        if first.predicted is not None:
            rows.append((PREDICTED_WITH_TRUTH if first.with_truth else PREDICTED, first.predicted))
        if first.rebuilt is not None:
            rows.append(("rebuilt", first.rebuilt))
    elif all(view.rebuilt is not None for view in views):
        for view in views:
            rows.append((view.title, view.kept_frames))
            if view.rebuilt is not None:
                rows.append((f"{view.title}:\nrebuilt", view.rebuilt))
    elif all(view.importance is not None for view in views):
        rows += [(view.title, view.kept_frames) for view in views]
    else:  # masks that keep all tokens differ in the visible ones
        rows += [(view.title, view.tinted_frames) for view in views]
    measured = next((view for view in reversed(views) if view.importance is not None), None)
    if measured is not None:
        rows.append(("importance", measured.heat()))
    return rows


def draw_views(path: Path, views: Sequence[MaskView], *, title: str) -> None:
    """A PNG with a column for each of up to 8 slices and a labeled line for each of `rows_of`."""
    rows = rows_of(views)
    draw_rows(path, rows, slices=views[0].grid.t, title=title, footnote=_footnote(views, rows))


def draw_rows(path: Path, rows: Sequence[FigureRow], *, slices: int, title: str, footnote: str = "") -> None:
    """A PNG with a labeled line for each row and a column for the first frame of each of up to 8 slices."""
    length, height, width = rows[0][1].shape[:3]
    step = length // slices
    columns = list(range(0, length, step))[:: -(-slices // COLUMNS)]
    column_width = 1.3 * max(width / height, 0.6)
    line_height = column_width * height / width
    size = (column_width * len(columns) + 2.2, line_height * len(rows) + 0.9)
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=size, dpi=120, layout="compressed")
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            _draw_row(figure, row, list(line), columns)
        for ax, frame in zip(axes[0], columns, strict=True):
            ax.set_title(f"frame {frame}", fontsize=8)
        figure.suptitle(title, fontsize=10)
        figure.supxlabel(footnote, fontsize=7)
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _footnote(views: Sequence[MaskView], rows: Sequence[FigureRow]) -> str:
    if any(label == PREDICTED_WITH_TRUTH for label, _ in rows):
        return FOOTNOTE
    if any(view.rebuilt is not None for view in views):
        return "rebuilt from the kept tokens and the first slice of each window"
    return "reddish: predicted, not seen" if any(view.importance is None for view in views) else ""


def _draw_row(figure: Figure, row: FigureRow, line: Sequence[Axes], columns: Sequence[int]) -> None:
    label, frames = row
    scale = Normalize(0, max(float(frames.max()), torch.finfo(torch.float32).tiny))
    for ax, frame in zip(line, columns, strict=True):
        heat = {"cmap": HEAT, "norm": scale} if frames.dim() == 3 else {}
        ax.imshow(frames[frame].numpy(), interpolation="nearest", **heat)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    if frames.dim() == 3:
        figure.colorbar(ScalarMappable(scale, HEAT), ax=list(line), fraction=0.03, pad=0.01)


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Draw for each clip its frames, the kept tokens, the clip rebuilt from them, and the scores.

    The first slice is kept completely.
    """
    rows = [row for example in examples for row in _rows(example)]
    slices = len(examples[0].mask)
    footnote = "the first slice is kept completely, of the others the highest scores; the rest is gray"
    draw_rows(
        path,
        rows,
        slices=slices,
        title="tokens kept by the tokenizer, and the clip rebuilt from them",
        footnote=footnote,
    )


def _rows(example: Example) -> list[FigureRow]:
    frames = example.frames.movedim(0, -1)  # (T, H, W, 3)
    kept = spread(example.mask, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
    return [
        (Path(example.video).name, frames),
        ("kept", frames * kept + GRAY * (1 - kept)),
        ("rebuilt", example.rebuilt.movedim(0, -1).clamp(0, 1)),
        ("score", spread(example.scores, frames.shape[:3])),
    ]


def jpeg_uri(image_pixels: Tensor, *, longest: int | None = None) -> str:
    """(H, W, 3) uint8 as a data URI; scaled down if a side is above `longest` pixels."""
    image, buffer = Image.fromarray(image_pixels.numpy()), io.BytesIO()
    if longest is not None:
        image.thumbnail((longest, longest))
    image.save(buffer, format="JPEG", quality=88)
    return _uri("jpeg", buffer.getvalue())


def png_uri(file: Path) -> str:
    """A PNG file as a data URI."""
    return _uri("png", file.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
