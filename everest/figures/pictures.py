"""PNG figures of masks and of a tokenizer's reconstructions (LVMAE Figure 3), and images as data URIs.

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
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from everest.figures.masks import GRAY, MaskView, spread
from everest.system.files import write_atomically
from everest.system.names import escape_bytes
from everest.tokenizer.report import Example

COLUMNS: Final = 8  # frames in a row, at most
HEAT: Final = "cividis"  # also readable without color vision and in gray
PREDICTED: Final = "predicted"
PREDICTED_WITH_TRUTH: Final = "predicted*"
FOOTNOTE: Final = "* normalized predictions, with the true mean and std of each tubelet"

FigureRow = tuple[str, Tensor]  # label, and (T, H, W, 3) pixels or (T, H, W) importance


def rows_of(views: Sequence[MaskView]) -> list[FigureRow]:
    """Return the rows of a figure of one clip: all images of a single view, the kept tokens of several.

    A row shows the importance that the strategies measure; rows if they measure it differently.
    """
    first = views[0]
    rows: list[FigureRow] = [("frames", first.frames)]
    if len(views) == 1:
        rows.append(("kept", first.pixels_of(first.kept)))
        if len(first.visible) < len(first.kept):
            rows.append(("visible", first.pixels_of(first.visible)))
        if first.predicted is not None:
            rows.append((PREDICTED_WITH_TRUTH if first.with_truth else PREDICTED, first.predicted))
        if first.rebuilt is not None:
            rows.append(("rebuilt", first.rebuilt))
    elif all(view.importance is not None or view.rebuilt is not None for view in views):
        for view in views:
            rows.append((view.title, view.pixels_of(view.kept)))
            if view.rebuilt is not None:
                rows.append((f"{view.title}:\nrebuilt", view.rebuilt))
    else:  # masks that keep all tokens differ in the visible ones
        rows += [(view.title, view.pixels_of(view.visible, tinted=view.kept)) for view in views]
    measured: list[MaskView] = []  # a view for each importance: several keep ratios share one
    for view in views:
        known = (other.importance for other in measured if other.importance is not None)
        if view.importance is not None and not any(torch.equal(view.importance, each) for each in known):
            measured.append(view)
    if len(measured) == 1:
        return [*rows, ("importance", measured[0].heat())]
    return rows + [(f"{view.title.splitlines()[0]}:\nimportance", view.heat()) for view in measured]


def draw_views(path: Path, views: Sequence[MaskView], *, title: str) -> None:
    """Draw a PNG with a column for each of up to 8 slices and a labeled line for each of `rows_of`."""
    rows = rows_of(views)
    footnote = ""
    if any(label == PREDICTED_WITH_TRUTH for label, _ in rows):
        footnote = FOOTNOTE
    elif any(view.rebuilt is not None for view in views):
        footnote = "rebuilt from the kept tokens and the first slice of each window"
    elif any(view.importance is None for view in views):
        footnote = "reddish: predicted, not seen"
    draw_rows(path, rows, slices=views[0].grid.t, title=title, footnote=footnote)


def draw_rows(path: Path, rows: Sequence[FigureRow], *, slices: int, title: str, footnote: str) -> None:
    """Draw a PNG with a line for each row and a column for the first frame of each of up to 8 slices."""
    length, height, width = rows[0][1].shape[:3]
    step = length // slices
    columns = list(range(0, length, step))[:: -(-slices // COLUMNS)]
    column_width = 1.3 * max(width / height, 0.6)
    line_height = column_width * height / width
    size = (column_width * len(columns) + 2.2, line_height * len(rows) + 0.9)
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=size, dpi=120, layout="compressed")
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for (label, frames), line in zip(rows, axes, strict=True):
            is_heat = frames.dim() == 3
            scale = Normalize(0, max(float(frames.max()), torch.finfo(torch.float32).tiny))
            for ax, frame in zip(line, columns, strict=True):
                colors = {"cmap": HEAT, "norm": scale} if is_heat else {}
                ax.imshow(frames[frame].numpy(), interpolation="nearest", **colors)
                ax.set(xticks=[], yticks=[])
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
            if is_heat:
                figure.colorbar(ScalarMappable(scale, HEAT), ax=list(line), fraction=0.03, pad=0.01)
        for ax, frame in zip(axes[0], columns, strict=True):
            ax.set_title(f"frame {frame}", fontsize=8)
        figure.suptitle(escape_bytes(title), fontsize=10, parse_math=False)
        figure.supxlabel(footnote, fontsize=7)
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Draw for each clip its frames, the kept tokens, the clip rebuilt from them, and the scores."""
    rows: list[FigureRow] = []
    for example in examples:
        frames = example.frames.movedim(0, -1)  # (T, H, W, 3)
        kept = spread(example.mask, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
        rows += [
            (Path(example.video).name, frames),
            ("kept", frames * kept + GRAY * (1 - kept)),
            ("rebuilt", example.rebuilt.movedim(0, -1).clamp(0, 1)),
            ("score", spread(example.scores, frames.shape[:3])),
        ]
    draw_rows(
        path,
        rows,
        slices=len(examples[0].mask),
        title="tokens kept by the tokenizer, and the clip rebuilt from them",
        footnote="the first slice is kept completely, of the others the highest scores; the rest is gray",
    )


def jpeg_uri(image_pixels: Tensor, *, longest: int | None = None) -> str:
    """Return (H, W, 3) uint8 as a data URI, scaled down if a side is above `longest` pixels."""
    image, buffer = Image.fromarray(image_pixels.numpy()), io.BytesIO()
    if longest is not None:
        image.thumbnail((longest, longest))
    image.save(buffer, format="JPEG", quality=88)
    return _uri("jpeg", buffer.getvalue())


def png_uri(file: Path) -> str:
    """Return a PNG file as a data URI."""
    return _uri("png", file.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
