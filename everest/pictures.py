"""Pictures of what strategies keep, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from everest.mask_view import MaskView
from everest.system.files import write_atomically

COLUMNS: Final = 8  # frames side by side at most
HEAT: Final = "cividis"  # the same to colour-blind eyes, and in grey
PREDICTED: Final = "predicted"
PREDICTED_WITH_TRUTH: Final = "predicted*"
FOOTNOTE: Final = "* normalised predictions, with the true mean and deviation of each tubelet"

Row = tuple[str, Tensor]  # label, and (T, H, W, 3) pixels or (T, H, W) importance


def rows_of(views: Sequence[MaskView]) -> list[Row]:
    """What is drawn of views of the same clip: of one all there is, of several what each keeps."""
    first = views[0]
    rows: list[Row] = [("frames", first.frames)]
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
    else:  # masks that keep all tokens differ in what the encoder sees
        rows += [(view.title, view.tinted_frames) for view in views]
    measured = next((view for view in reversed(views) if view.importance is not None), None)
    if measured is not None:
        rows.append(("importance", measured.heat()))
    return rows


def draw_views(path: Path, views: Sequence[MaskView], *, title: str) -> None:
    """A PNG with a column for each of up to 8 slices and a labelled line for each of `rows_of`."""
    rows = rows_of(views)
    draw_rows(path, rows, slices=views[0].grid.t, title=title, footnote=_footnote(views, rows))


def draw_rows(path: Path, rows: Sequence[Row], *, slices: int, title: str, footnote: str = "") -> None:
    """A PNG with a labelled line for each row and a column for the first frame of each of up to 8 slices."""
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


def _footnote(views: Sequence[MaskView], rows: Sequence[Row]) -> str:
    if any(label == PREDICTED_WITH_TRUTH for label, _ in rows):
        return FOOTNOTE
    if any(view.rebuilt is not None for view in views):
        return "rebuilt from what is kept and the first slice of each window"
    return "reddish: predicted, not seen" if any(view.importance is None for view in views) else ""


def _draw_row(figure: Figure, row: Row, line: Sequence[Axes], columns: Sequence[int]) -> None:
    label, frames = row
    scale = Normalize(0, max(float(frames.max()), torch.finfo(torch.float32).tiny))
    for ax, frame in zip(line, columns, strict=True):
        heat = {"cmap": HEAT, "norm": scale} if frames.dim() == 3 else {}
        ax.imshow(frames[frame].numpy(), interpolation="nearest", **heat)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    if frames.dim() == 3:
        figure.colorbar(ScalarMappable(scale, HEAT), ax=list(line), fraction=0.03, pad=0.01)
