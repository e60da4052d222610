"""PNG figures of masks and of a tokenizer's reconstructions (LVMAE Figure 3).

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from everest.figures.masks import ClipMask, gray_but, over_pixels
from everest.figures.png import escape_dollars, png_figure, shorten
from everest.tokenizer.report import Example

COLUMNS: Final = 8  # frames in a row, at most
HEAT: Final = "cividis"  # also readable without color vision and in gray
SMALL: Final = 8  # points, of explanations


class FigureRow(NamedTuple):
    """Images of one kind, with their explanation."""

    label: str
    frames: Tensor  # (T, H, W, 3) pixels or (T, H, W) importance
    note: str = ""
    scale: Normalize | None = None  # the colors of the importance of all frames


def share_text(count: int, total: int) -> str:
    """`30 % = 604 of 2016`."""
    return f"{round(100 * count / total, 1):g} % = {count} of {total}"


def range_text(numbers: Sequence[int]) -> str:
    """`7` or `7, 11` or `7 to 19`: the ascending frame numbers of a time slice."""
    if len(numbers) < 3:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]} to {numbers[-1]}"


def mask_title(mask: ClipMask) -> str:
    """How many tokens a strategy keeps and shows to the encoder."""
    total = mask.grid.num_tokens
    text = f"{mask.title} keeps {share_text(len(mask.kept), total)} tokens"
    return f"{text}; {share_text(len(mask.visible), total)} are visible" if mask.hides_some else text


def rows_of(masks: Sequence[ClipMask]) -> list[FigureRow]:
    """Return the rows of a figure of one clip: all images of a single mask, one row for each of several.

    The last rows show the importance that the strategies measure; those that measure the same share a row.
    """
    first = masks[0]
    total = first.grid.num_tokens
    rows = [FigureRow("original", first.frames)]
    if len(masks) == 1:
        kept, visible = len(first.kept), len(first.visible)
        if kept < total or not first.hides_some:  # else the row would be equal to the frames
            rows.append(FigureRow("kept tokens", first.pixels_of(first.kept), share_text(kept, total)))
        if first.hides_some:
            seen = first.pixels_of(first.visible)
            rows.append(FigureRow("visible tokens", seen, share_text(visible, total)))
        if first.predicted is not None:
            rows.append(FigureRow("predicted", first.predicted, share_text(kept - visible, total)))
    else:
        for mask in masks:
            is_mask = mask.hides_some and mask.importance is None  # a random mask: what the encoder sees
            verb, tokens = ("shows", mask.visible) if is_mask else ("keeps", mask.kept)
            note = f"{verb} {share_text(len(tokens), total)}"
            rows.append(FigureRow(mask.title, mask.pixels_of(tokens), note))
    shown: list[Tensor] = []
    for mask in masks:
        if mask.importance is None or any(torch.equal(mask.importance, known) for known in shown):
            continue
        shown.append(mask.importance)
        highest = float(mask.importance.max())
        scale = Normalize(mask.no_change, highest if highest > mask.no_change else mask.no_change + 1)
        by_token = mask.importance.view(mask.grid.t, mask.grid.h, mask.grid.w)
        heat = over_pixels(by_token, mask.frames.shape[:3])  # (T, H, W)
        rows.append(FigureRow("importance", heat, mask.title, scale))
    return rows


def draw_rows(
    path: Path, rows: Sequence[FigureRow], *, slices: int, title: str, numbers: Sequence[int] = ()
) -> None:
    """Draw a PNG with a line for each row and a column for the first frame of each of up to 8 slices.

    Gray tokens are dropped or hidden. The columns have the `numbers` of T frames in the video, else from 0.
    """
    length, height, width = rows[0].frames.shape[:3]
    numbers = numbers or range(length)
    step = length // slices
    shown = range(0, slices, -(-slices // COLUMNS))
    column = min(1.3 * max(width / height, 0.75), 1.6)  # inches: eight columns fit on a screen
    size = (column * len(shown) + 2.6, column * height / width * len(rows) + 1)
    with png_figure(path, size, points=10, framed=True, layout="compressed") as figure:
        axes = figure.subplots(len(rows), len(shown), squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            colors = {} if row.scale is None else {"cmap": HEAT, "norm": row.scale}
            for panel, number in zip(line, shown, strict=True):
                panel.set(xticks=[], yticks=[])
                panel.imshow(row.frames[number * step].numpy(), interpolation="antialiased", **colors)
            label = escape_dollars(f"{row.label}\n{row.note}".strip())
            line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=SMALL)
            if row.scale is not None:
                bar = figure.colorbar(ScalarMappable(row.scale, HEAT), ax=list(line), fraction=0.03, pad=0.01)
                bar.ax.tick_params(labelsize=SMALL)
        for panel, number in zip(axes[0], shown, strict=True):
            named = range_text(numbers[number * step : (number + 1) * step])
            panel.set_title(f"frame{'s' if step > 1 else ''} {named}", fontsize=SMALL)
        figure.suptitle(escape_dollars(title), fontsize=10)


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Draw for each clip its frames, the kept tokens, the clip rebuilt from them, and the scores."""
    rows: list[FigureRow] = []
    for example in examples:
        frames = example.frames.movedim(0, -1)  # (T, H, W, 3)
        scores = over_pixels(example.scores, frames.shape[:3])
        highest = float(scores.max()) if scores.max() > 0 else 1.0
        count = share_text(int(example.mask.sum()), example.mask.numel())
        rows += [
            FigureRow("original", frames, shorten(Path(example.video).name, 24)),
            FigureRow("kept tokens", gray_but(frames, example.mask), count),
            FigureRow("rebuilt", example.rebuilt.movedim(0, -1).clamp(0, 1), "from the kept tokens"),
            FigureRow("score", scores, "higher is kept first", Normalize(0, highest)),
        ]
    title = "tokens kept by the tokenizer, and the clip rebuilt from them"
    draw_rows(path, rows, slices=examples[0].mask.size(0), title=title)
