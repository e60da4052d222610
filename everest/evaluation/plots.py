"""The plots of an evaluation: confusions of classes, and predicted by true numbers.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from everest.figures.drawing import COLORS, plain, png_figure, shorten

LONGEST_NAME: Final = 32  # letters
NUMBERED: Final = 30  # classes up to which each cell of the matrix shows its count
CELL: Final = (0.45, 0.1)  # inches of a cell with a count, and of one without
LETTERS: Final = (9, 6)  # points of the names next to such cells
SMALLEST: Final = 3.0  # inches: two classes leave room for the labels
SHADE: Final = PowerNorm(0.5, vmin=0, vmax=1)  # of shares: a few videos among many are visible too
DARK: Final = 0.5  # shares from which white is easier to read than black
FEW: Final = 200  # our choice: up to this number of videos, points of a scatter plot are opaque
PALE: Final = 0.3


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return names for an axis. If one is long, all begin with a number, and long ones lose their middle."""
    if all(len(name) <= LONGEST_NAME for name in names):
        return list(names)
    return [f"{number} {shorten(name, LONGEST_NAME - 5)}" for number, name in enumerate(names)]


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write a PNG of (C, C) videos by true and predicted class, shaded by the share of the true class.

    With few classes every cell shows its count; with many the image grows so that each name is readable.
    """
    is_numbered = len(names) <= NUMBERED
    cell, points = (CELL[0], LETTERS[0]) if is_numbered else (CELL[1], LETTERS[1])
    side = max(cell * len(names), SMALLEST) + 2.5
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    shown = [plain(name) for name in shorten_names(names)]
    with png_figure(path, (side + 0.5, side), points=10, framed=True) as figure:
        panel = figure.subplots()
        image = panel.imshow(shares, cmap="Blues", norm=SHADE, interpolation="nearest")
        panel.set_xticks(range(len(names)), shown, rotation=90, fontsize=points)
        panel.set_yticks(range(len(names)), shown, fontsize=points)
        panel.set(xlabel="predicted class", ylabel="true class")
        panel.set_title(f"{counts.sum()} videos by true and predicted class")
        if is_numbered:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if shares[row, column] > DARK else "black"
                count = str(counts[row, column])
                panel.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
        else:
            panel.tick_params(labeltop=True, labelright=True)  # names on all sides of a large image
        bar = figure.colorbar(image, ax=panel, fraction=0.03, ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("share of the true class")


def draw_scatter(path: Path, truth: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]]) -> None:
    """Write a PNG of predicted by true values, with a point per video and the line of equal values.

    Args:
        truth, predicted: (V,), finite; at least one.
    """
    both = np.concatenate([truth, predicted]).astype(np.float64)  # (2 V,)
    low, high = float(both.min()), float(both.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    with png_figure(path, (6, 6)) as figure:
        panel = figure.subplots()
        alpha = 1.0 if len(truth) <= FEW else 0.3
        panel.plot(truth, predicted, "o", color=COLORS[0], markersize=5, markeredgewidth=0, alpha=alpha)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true value", ylabel="predicted value")
        panel.set_title(f"{len(truth)} videos (dashed: predicted = true)", fontsize=12)
        panel.grid(alpha=0.3)
