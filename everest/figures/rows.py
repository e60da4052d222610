"""Figures of the tokens of clips: rows of frames with visible and predicted tokens, and importance as colors.

T frames, H W pixels, N tokens, K visible and M predicted tokens, t h w the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from torch import Tensor

from everest.figures.style import COLORS, escape_dollars, saved_figure, shorten
from everest.methods.grid import TokenGrid
from everest.methods.importance import NO_CHANGE
from everest.methods.selection import Strategy
from everest.tokenizer.report import Example

HIDDEN_GRAY: Final = 0.55  # gray of hidden tokens: neither black nor white, which videos contain
TINT: Final = to_rgb(COLORS[1])  # of tokens that are predicted: orange
TINT_FRACTION: Final = 0.5
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
    visible: Tensor  # (K,) ids of the encoded tokens, ascending
    predicted_ids: Tensor  # (M,) ids of the tokens to predict
    importance: Tensor | None  # (N,) float32; None if the strategy measures nothing
    frames: Tensor  # (T, H, W, 3) float32 in [0, 1]
    predicted: Tensor | None = None  # `frames` with the targets as a model predicts them

    @property
    def kept(self) -> Tensor:
        """The ids of the encoded or predicted tokens, ascending."""
        return torch.cat([self.visible, self.predicted_ids]).unique()

    @property
    def shown(self) -> Tensor:
        """The frames (T, H, W, 3) with predicted tokens orange, and tokens that are not kept gray.

        Without visible tokens, as by the scores of a tokenizer, the kept tokens are not orange.
        """
        kept, predicted = torch.zeros(2, self.grid.num_tokens)
        kept[self.kept] = 1
        predicted[self.predicted_ids] = TINT_FRACTION if len(self.visible) else 0
        frames = blend(self.frames, torch.tensor(TINT), self.on_grid(predicted))
        return blend(frames, torch.tensor(HIDDEN_GRAY), self.on_grid(1 - kept))

    def on_grid(self, values: Tensor) -> Tensor:
        """Values of the tokens (N,) as a grid (t, h, w)."""
        return values.view(self.grid.t, self.grid.h, self.grid.w)

    @property
    def counts(self) -> str:
        """The fractions of visible and of predicted tokens, one a line."""
        total = self.grid.num_tokens
        named = {"visible": self.visible, "predicted" if len(self.visible) else "kept": self.predicted_ids}
        return "\n".join(
            f"{name} {format_fraction(len(ids), total)}" for name, ids in named.items() if len(ids)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the values of --json: ids and counts."""
        kept_per_slice = torch.bincount(self.kept // self.grid.num_positions, minlength=self.grid.t)
        return {
            "grid": [self.grid.t, self.grid.h, self.grid.w],
            "strategy": self.strategy.strategy,
            "keep": round(len(self.kept) / self.grid.num_tokens, 4),
            "kept_per_slice": kept_per_slice.tolist(),
            "kept": self.kept.tolist(),
            "visible": self.visible.tolist(),
        }


def blend(frames: Tensor, color: Tensor, fraction: Tensor) -> Tensor:
    """Frames (T, H, W, 3) with a fraction (t, h, w) of a color in the pixels of each token."""
    by_pixel = spread_over_pixels(fraction, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
    return frames * (1 - by_pixel) + color * by_pixel


def spread_over_pixels(by_token: Tensor, shape: Sequence[int]) -> Tensor:
    """Spread values of tokens (t, h, w) over the pixels (T, H, W) of `shape` that they cover."""
    for dim, (length, tokens) in enumerate(zip(shape, by_token.shape, strict=True)):
        by_token = by_token.repeat_interleave(length // tokens, dim=dim)
    return by_token


def with_three_channels(frames: Tensor) -> Tensor:
    """Frames (..., 3) unchanged; gray frames (..., 1) with three equal channels."""
    return frames.expand(*frames.shape[:-1], 3)


def format_fraction(count: int, total: int) -> str:
    """A fraction of tokens as text: `30 % = 604 of 2016`."""
    return f"{round(100 * count / total, 1):g} % = {count} of {total}"


def format_range(numbers: Sequence[int]) -> str:
    """The ascending frame numbers of a time index as text: `7`, `7, 11` or `7 to 19`."""
    return ", ".join(map(str, numbers)) if len(numbers) < 3 else f"{numbers[0]} to {numbers[-1]}"


def make_figure_rows(masks: Sequence[ClipMask]) -> list[FigureRow]:
    """Return the rows of a figure of one clip: the frames, the tokens of each mask, and what it predicts.

    The last rows show the importance that the strategies measure; equal importance shares a row.
    """
    rows = [FigureRow("original", masks[0].frames)]
    for mask in masks:
        rows.append(FigureRow(shorten(mask.title, 32), mask.shown, mask.counts))
        if mask.predicted is not None:
            rows.append(FigureRow("reconstruction", mask.predicted))
    drawn: list[Tensor] = []
    for mask in masks:
        if mask.importance is None or any(torch.equal(mask.importance, known) for known in drawn):
            continue
        drawn.append(mask.importance)
        lowest = NO_CHANGE.get(getattr(mask.strategy, "distance", ""), 0.0)  # without any change
        highest = float(mask.importance.max())
        scale = Normalize(lowest, highest if highest > lowest else lowest + 1)
        heat = spread_over_pixels(mask.on_grid(mask.importance), mask.frames.shape[:3])  # (T, H, W)
        rows.append(FigureRow("importance", heat, shorten(mask.title, 32), scale))
    return rows


def draw_rows(
    path: Path, rows: Sequence[FigureRow], *, num_time_indices: int, title: str, numbers: Sequence[int] = ()
) -> None:
    """Draw a figure with a line for each row and a column for the first frame of up to 8 time indices.

    Columns have the `numbers` of the T frames in the video, or start at 0.
    """
    length, height, width = rows[0].frames.shape[:3]
    numbers = numbers or range(length)
    step = length // num_time_indices
    columns = range(0, num_time_indices, -(-num_time_indices // ROW_LENGTH))  # time indices that get a column
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
        count = format_fraction(int(example.mask.sum()), example.mask.numel())
        rows += [
            FigureRow("original", frames, shorten(Path(example.video).name, 24)),
            FigureRow("kept tokens", blend(frames, torch.tensor(HIDDEN_GRAY), 1 - example.mask), count),
            FigureRow(
                "reconstructed", example.reconstructed.movedim(0, -1).clamp(0, 1), "from the kept tokens"
            ),
            FigureRow("score", scores, "higher is kept first", Normalize(0, highest)),
        ]
    title = "tokens kept by the tokenizer, and the clip reconstructed from them"
    draw_rows(path, rows, num_time_indices=examples[0].mask.size(0), title=title)
