"""Figures of the tokens of clips: rows of frames with the kept tokens, predictions, and importance as colors.

T frames, H W pixels, N tokens, K selected tokens, t h w the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from everest.figures.style import escape_dollars, saved_figure, shorten
from everest.methods.grid import TokenGrid
from everest.methods.importance import NO_CHANGE
from everest.methods.selection import Strategy
from everest.tokenizer.report import Example

HIDDEN_GRAY: Final = 0.55  # gray of hidden tokens: neither black nor white, which videos contain
ROW_LENGTH: Final = 8  # most frames in a row
HEAT: Final = "cividis"  # color map that is also readable without color vision and in gray
SMALL_POINTS: Final = 8  # font size of explanations, in points


class FigureRow(NamedTuple):
    """Images of one kind, with their explanation."""

    label: str
    frames: Tensor  # (T, H, W, 3) pixels or (T, H, W) importance
    note: str = ""
    scale: Normalize | None = None  # the colors of the importance of all frames


@dataclass(frozen=True, kw_only=True)
class ClipMask:
    """One strategy on one clip."""

    title: str
    strategy: Strategy
    grid: TokenGrid
    kept: Tensor  # (K,) ids of the encoded or predicted tokens, ascending
    visible: Tensor  # (K_vis,) ids of the encoded tokens, ascending
    importance: Tensor | None  # (N,) float32; None if the strategy measures nothing
    frames: Tensor  # (T, H, W, 3) float32 in [0, 1]
    predicted: Tensor | None = None  # `frames` with the targets as a model predicts them

    @property
    def hides_some(self) -> bool:
        """Whether the encoder sees some of the kept tokens and the decoder predicts the others."""
        return 0 < len(self.visible) < len(self.kept)

    def pixels_of(self, tokens: Tensor) -> Tensor:
        """The frames (T, H, W, 3) with `tokens` (K,) unchanged and all other tokens gray."""
        is_shown = torch.zeros(self.grid.num_tokens)
        is_shown[tokens] = 1
        return gray_out_others(self.frames, is_shown.view(self.grid.t, self.grid.h, self.grid.w))

    def to_dict(self) -> dict[str, Any]:
        """Return the values of --json: ids and counts."""
        kept_per_slice = torch.bincount(self.kept // self.grid.per_slice, minlength=self.grid.t)
        return {
            "grid": [self.grid.t, self.grid.h, self.grid.w],
            "strategy": self.strategy.strategy,
            "keep": round(len(self.kept) / self.grid.num_tokens, 4),
            "kept_per_slice": kept_per_slice.tolist(),
            "kept": self.kept.tolist(),
            "visible": self.visible.tolist(),
        }


def gray_out_others(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames (T, H, W, 3) with the tokens unchanged where a mask (t, h, w) is 1, and gray where it is 0."""
    shown = spread_over_pixels(mask, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
    return frames * shown + HIDDEN_GRAY * (1 - shown)


def spread_over_pixels(by_token: Tensor, shape: Sequence[int]) -> Tensor:
    """Spread values of tokens (t, h, w) over the pixels (T, H, W) of `shape` that they cover."""
    for dim, (length, tokens) in enumerate(zip(shape, by_token.shape, strict=True)):
        by_token = by_token.repeat_interleave(length // tokens, dim=dim)
    return by_token


def to_rgb(frames: Tensor) -> Tensor:
    """Frames (..., 3) unchanged; gray frames (..., 1) with three equal channels."""
    return frames.expand(*frames.shape[:-1], 3)


def format_share(count: int, total: int) -> str:
    """A share of tokens as text: `30 % = 604 of 2016`."""
    return f"{round(100 * count / total, 1):g} % = {count} of {total}"


def format_range(numbers: Sequence[int]) -> str:
    """The ascending frame numbers of a time slice as text: `7`, `7, 11` or `7 to 19`."""
    return ", ".join(map(str, numbers)) if len(numbers) < 3 else f"{numbers[0]} to {numbers[-1]}"


def make_mask_title(mask: ClipMask) -> str:
    """How many tokens a strategy keeps and shows to the encoder."""
    total = mask.grid.num_tokens
    text = f"{mask.title} keeps {format_share(len(mask.kept), total)} tokens"
    return f"{text}; {format_share(len(mask.visible), total)} are visible" if mask.hides_some else text


def make_figure_rows(masks: Sequence[ClipMask]) -> list[FigureRow]:
    """Return the rows of a figure of one clip: all images of a single mask, or one row per mask.

    The last rows show the importance that the strategies measure; equal importance shares a row.
    """
    first = masks[0]
    total = first.grid.num_tokens
    rows = [FigureRow("original", first.frames)]
    if len(masks) == 1:
        kept, visible = len(first.kept), len(first.visible)
        if kept < total or not first.hides_some:  # else the row equals the frames
            rows.append(FigureRow("kept tokens", first.pixels_of(first.kept), format_share(kept, total)))
        if first.hides_some:
            seen = first.pixels_of(first.visible)
            rows.append(FigureRow("visible tokens", seen, format_share(visible, total)))
        if first.predicted is not None:
            rows.append(FigureRow("predicted", first.predicted, format_share(kept - visible, total)))
    else:
        for mask in masks:
            is_mask = mask.hides_some and mask.importance is None  # a random mask: show what the encoder sees
            verb, tokens = ("shows", mask.visible) if is_mask else ("keeps", mask.kept)
            note = f"{verb} {format_share(len(tokens), total)}"
            rows.append(FigureRow(mask.title, mask.pixels_of(tokens), note))
    drawn: list[Tensor] = []
    for mask in masks:
        if mask.importance is None or any(torch.equal(mask.importance, known) for known in drawn):
            continue
        drawn.append(mask.importance)
        lowest = NO_CHANGE.get(getattr(mask.strategy, "distance", ""), 0.0)  # without any change
        highest = float(mask.importance.max())
        scale = Normalize(lowest, highest if highest > lowest else lowest + 1)
        by_token = mask.importance.view(mask.grid.t, mask.grid.h, mask.grid.w)
        heat = spread_over_pixels(by_token, mask.frames.shape[:3])  # (T, H, W)
        rows.append(FigureRow("importance", heat, mask.title, scale))
    return rows


def draw_rows(
    path: Path, rows: Sequence[FigureRow], *, slices: int, title: str, numbers: Sequence[int] = ()
) -> None:
    """Draw a figure with a line for each row and a column for the first frame of each of up to 8 slices.

    Gray tokens are dropped or hidden. Columns have the `numbers` of the T frames in the video, or start at 0.
    """
    length, height, width = rows[0].frames.shape[:3]
    numbers = numbers or range(length)
    step = length // slices
    columns = range(0, slices, -(-slices // ROW_LENGTH))  # slices that get a column
    column = min(1.3 * max(width / height, 0.75), 1.6)  # inches: eight columns fit on a screen
    size = (column * len(columns) + 2.6, column * height / width * len(rows) + 1)
    with saved_figure(path, size, points=10, framed=True, layout="compressed") as figure:
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            colors = {} if row.scale is None else {"cmap": HEAT, "norm": row.scale}
            for panel, number in zip(line, columns, strict=True):
                panel.set(xticks=[], yticks=[])
                panel.imshow(row.frames[number * step].numpy(), interpolation="antialiased", **colors)
            label = escape_dollars(f"{row.label}\n{row.note}".strip())
            line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=SMALL_POINTS)
            if row.scale is not None:
                bar = figure.colorbar(ScalarMappable(row.scale, HEAT), ax=list(line), fraction=0.03, pad=0.01)
                bar.ax.tick_params(labelsize=SMALL_POINTS)
        for panel, number in zip(axes[0], columns, strict=True):
            named = format_range(numbers[number * step : (number + 1) * step])
            panel.set_title(f"frame{'s' if step > 1 else ''} {named}", fontsize=SMALL_POINTS)
        figure.suptitle(escape_dollars(title), fontsize=10)


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Draw a tokenizer's reconstructions of clips, with the kept tokens and the scores (LVMAE Figure 3)."""
    rows: list[FigureRow] = []
    for example in examples:
        frames = example.frames.movedim(0, -1)  # (T, H, W, 3)
        scores = spread_over_pixels(example.scores, frames.shape[:3])
        highest = float(scores.max()) if scores.max() > 0 else 1.0
        count = format_share(int(example.mask.sum()), example.mask.numel())
        rows += [
            FigureRow("original", frames, shorten(Path(example.video).name, 24)),
            FigureRow("kept tokens", gray_out_others(frames, example.mask), count),
            FigureRow("rebuilt", example.rebuilt.movedim(0, -1).clamp(0, 1), "from the kept tokens"),
            FigureRow("score", scores, "higher is kept first", Normalize(0, highest)),
        ]
    title = "tokens kept by the tokenizer, and the clip rebuilt from them"
    draw_rows(path, rows, slices=examples[0].mask.size(0), title=title)
