"""PNG figures of masks and of a tokenizer's reconstructions (LVMAE Figure 3).

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from everest.figures.drawing import plain, png_figure, shorten
from everest.figures.legend import (
    DROPPED,
    SMALL,
    Legend,
    ShownFrames,
    add_words,
    camera_text,
    importance_text,
    is_tinted,
    legend_of,
    range_text,
    share_text,
    token_text,
)
from everest.figures.masks import GRAY, MaskView, over_pixels
from everest.tokenizer.report import Example

COLUMNS: Final = 8  # frames in a row, at most
COLUMN_WIDTH: Final = 1.6  # inches, at most: eight columns fit on a screen
HEAT: Final = "cividis"  # also readable without color vision and in gray
LONGEST_NAME: Final = 24  # letters of a file's name next to its frames


class FigureRow(NamedTuple):
    """Images of one kind, with their explanation."""

    label: str
    frames: Tensor  # (T, H, W, 3) pixels or (T, H, W) importance
    note: str = ""
    captions: Sequence[str] = ()  # of each time slice
    scale: Normalize | None = None  # the colors of the importance of all frames


def rows_of(views: Sequence[MaskView]) -> list[FigureRow]:
    """Return the rows of a figure of one clip: all images of a single view, the kept tokens of several.

    A row shows the importance that the strategies measure; rows if they measure it differently.
    """
    rows = [FigureRow("original", views[0].frames, "frames of the video")]
    rows += _rows_of_one(views[0]) if len(views) == 1 else _rows_of_several(views)
    camera = next((view.camera for view in views if view.camera is not None), None)
    if camera is not None:
        rows.append(FigureRow("camera", camera.frames, camera_text(camera)))
    return [*rows, *_heat_rows(views)]


def _rows_of_one(view: MaskView) -> Iterator[FigureRow]:
    """The kept, visible and predicted tokens, and the clip rebuilt by a tokenizer."""
    kept, visible, total = len(view.kept), len(view.visible), view.grid.num_tokens
    if kept < total or not view.hides:  # else the row would be equal to the frames
        captions = [f"{count} of {view.grid.per_slice}" for count in view.kept_per_slice()]
        yield FigureRow("kept tokens", view.pixels_of(view.kept), share_text(kept, total), captions)
    if view.hides:
        note = f"to the encoder:\n{share_text(visible, total)}"
        yield FigureRow("visible tokens", view.pixels_of(view.visible), note)
    if view.predicted is not None:
        note = f"by the decoder:\n{share_text(kept - visible, total)}"
        yield FigureRow("predicted*" if view.with_truth else "predicted", view.predicted, note)
    if view.rebuilt is not None:
        yield FigureRow("rebuilt", view.rebuilt, "by the tokenizer")


def _rows_of_several(views: Sequence[MaskView]) -> Iterator[FigureRow]:
    """The tokens of each view in one row, and the clip that a tokenizer rebuilds from them."""
    tinted = is_tinted(views)
    for view in views:
        kept, visible, total = len(view.kept), len(view.visible), view.grid.num_tokens
        if tinted:
            note = f"visible {share_text(visible, total)}\npredicted {share_text(kept - visible, total)}"
            yield FigureRow(view.title, view.pixels_of(view.visible, tinted=view.kept), note)
        else:
            yield FigureRow(view.title, view.pixels_of(view.kept), f"keeps {share_text(kept, total)}")
            if view.rebuilt is not None:
                yield FigureRow("rebuilt", view.rebuilt, f"from the tokens of\n{view.title}")


def _heat_rows(views: Sequence[MaskView]) -> Iterator[FigureRow]:
    """The importance that each strategy measures; several keep ratios of one share it."""
    measured: list[tuple[MaskView, Tensor]] = []
    for view in views:
        importance = view.importance
        if importance is not None and not any(torch.equal(importance, known) for _, known in measured):
            measured.append((view, importance))
    for view, _ in measured:
        quantity = importance_text(view)
        # With and without the motion of the camera, the highest values differ too much for one scale.
        highest = max(
            float(importance.max())
            for other, importance in measured
            if importance_text(other) == quantity and (other.camera is None) == (view.camera is None)
        )
        note = quantity if len(measured) == 1 else f"{view.title}:\n{quantity}"
        if highest <= view.no_change:
            note, highest = f"{note}\n(there is none)", view.no_change + 1
        yield FigureRow("importance", view.heat(), note, scale=Normalize(view.no_change, highest))


def draw_views(
    path: Path, views: Sequence[MaskView], *, title: str, source: ShownFrames | None = None
) -> None:
    """Draw a PNG with a column for each of up to 8 slices and a labeled line for each of `rows_of`.

    Args:
        source: the frames of the video, for the title and the columns; None numbers the frames of the clip.
    """
    draw_rows(
        path,
        rows_of(views),
        slices=views[0].grid.t,
        title=title if source is None else f"{source}\n{title}",
        legend=legend_of(views, numbered=source is not None),
        numbers=None if source is None else source.numbers,
    )


def draw_rows(
    path: Path,
    rows: Sequence[FigureRow],
    *,
    slices: int,
    title: str,
    legend: Legend,
    numbers: Sequence[int] | None = None,
) -> Figure:
    """Draw a PNG with a line for each row and a column for the first frame of each of up to 8 slices.

    Args:
        numbers: T frame numbers for the columns; None: from 0.
    """
    length, height, width = rows[0].frames.shape[:3]
    numbers = numbers or range(length)
    step = length // slices
    shown = range(0, slices, -(-slices // COLUMNS))
    column_width = min(1.3 * max(width / height, 0.6), COLUMN_WIDTH)
    size = (
        column_width * len(shown) + 2.6,
        column_width * height / width * len(rows) + 1 + 0.2 * len(legend),
    )
    with png_figure(path, size, points=10, framed=True, tight=False, layout="compressed") as figure:
        axes = figure.subplots(len(rows), len(shown), squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            for ax, number in zip(line, shown, strict=True):
                show_frame(ax, row, number * step)
                if row.captions:
                    ax.set_xlabel(row.captions[number], fontsize=SMALL, labelpad=2)
            place = {"ha": "right", "transform": line[0].transAxes}
            line[0].text(-0.05, 0.51, plain(row.label), va="bottom", **place)
            line[0].text(-0.05, 0.49, plain(row.note), va="top", fontsize=SMALL, **place)
            if row.scale is not None:
                colors = ScalarMappable(row.scale, HEAT)
                bar = figure.colorbar(colors, ax=list(line), fraction=0.03, pad=0.01)
                bar.ax.tick_params(labelsize=SMALL)
        for ax, number in zip(axes[0], shown, strict=True):
            named = range_text(numbers[number * step : (number + 1) * step])
            ax.set_title(f"frame{'s' if step > 1 else ''} {named}", fontsize=SMALL)
        add_words(figure, title, legend)
    return figure


def show_frame(ax: Axes, row: FigureRow, frame: int) -> None:
    """Show a frame of a row, or its importance in colors."""
    ax.set(xticks=[], yticks=[])
    colors = {} if row.scale is None else {"cmap": HEAT, "norm": row.scale}
    ax.imshow(row.frames[frame].numpy(), interpolation="antialiased", **colors)


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Draw for each clip its frames, the kept tokens, the clip rebuilt from them, and the scores."""
    rows: list[FigureRow] = []
    for example in examples:
        frames = example.frames.movedim(0, -1)  # (T, H, W, 3)
        kept = over_pixels(example.mask, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
        scores = over_pixels(example.scores, frames.shape[:3])
        highest = float(scores.max()) if scores.max() > 0 else 1.0
        count = share_text(int(example.mask.sum()), example.mask.numel())
        rows += [
            FigureRow("original", frames, shorten(Path(example.video).name, LONGEST_NAME)),
            FigureRow("kept tokens", frames * kept + GRAY * (1 - kept), count),
            FigureRow("rebuilt", example.rebuilt.movedim(0, -1).clamp(0, 1), "from the kept tokens"),
            FigureRow("score", scores, "higher is kept first", scale=Normalize(0, highest)),
        ]
    t, h, w = examples[0].mask.shape
    length, height, width = examples[0].frames.shape[1:]
    draw_rows(
        path,
        rows,
        slices=t,
        title="tokens kept by the tokenizer, and the clip rebuilt from them",
        legend={
            "gray: dropped": DROPPED,
            "the first time slice is kept completely, of the others the tokens with the highest scores": None,
            token_text((length // t, height // h, width // w), numbered=False): None,
        },
    )
