"""The plots of a page: confusions between classes, and predicted against true numbers.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from everest.figures.style import COLORS, escape_dollars, saved_figure, shorten

LONGEST_NAME: Final = 32  # maximum number of letters
MAX_NUMBERED: Final = 30  # maximum number of classes for which matrix cells show percentages

Names = Sequence[str]  # names of videos or classes


def shorten_names(names: Names) -> list[str]:
    """Return names for an axis. If any is long, all are numbered, and long names lose their middle."""
    if all(len(name) <= LONGEST_NAME for name in names):
        return list(names)
    return [f"{number} {shorten(name, LONGEST_NAME - 5)}" for number, name in enumerate(names)]


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Names, *, noun: str) -> None:
    """Write a PNG of (C, C) counts of videos or windows by true and predicted class, as percent of each row.

    With few classes every cell shows its percentage, and the recall and precision of each class are at the
    edges; with many the image grows so that each name is readable.
    """
    is_numbered = len(names) <= MAX_NUMBERED
    cell, points = (0.5, 9) if is_numbered else (0.1, 6)  # inches of a cell, points of the names
    side = max(cell * len(names), 3.0) + 2.5  # two classes leave room for the labels
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    axis_names = [escape_dollars(name) for name in shorten_names(names)]
    with saved_figure(path, (side + 0.5, side), points=10, framed=True) as figure:
        panel = figure.subplots()
        image = panel.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        panel.set_xticks(range(len(names)), axis_names, rotation=90, fontsize=points)
        panel.set_yticks(range(len(names)), axis_names, fontsize=points)
        panel.set(xlabel="predicted class", ylabel="true class")
        title = f"percent of the {noun}s of a true class ({counts.sum()} {noun}s)"
        if is_numbered:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if fractions[row, column] > 0.5 else "black"
                percent = f"{100 * fractions[row, column]:.0f}"
                panel.text(column, row, percent, ha="center", va="center", color=color, fontsize=8)
            right, predicted = counts.diagonal(), counts.sum(axis=0)  # (C,) each
            precisions = [f"{100 * x:.0f}" for x in right / np.maximum(predicted, 1)]
            recalls = [f"{100 * x:.0f}" for x in fractions.diagonal()]
            top, side_axis = panel.secondary_xaxis("top"), panel.secondary_yaxis("right")
            top.set_xticks(range(len(names)), precisions, fontsize=8)
            top.set_xlabel("precision, %")
            side_axis.set_yticks(range(len(names)), recalls, fontsize=8)
            side_axis.set_ylabel("recall, %")
        else:
            panel.tick_params(labeltop=True, labelright=True)  # names on all sides of a large image
        panel.set_title(title, fontsize=10)
        bar = figure.colorbar(image, ax=panel, fraction=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("fraction of the true class")


def draw_scatter(
    path: Path, labels: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]], *, noun: str
) -> None:
    """Write a PNG of predicted against true values (V,), finite and at least one, with the diagonal."""
    values = np.concatenate([labels, predicted]).astype(np.float64)  # (2 V,)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    with saved_figure(path, (6, 6)) as figure:
        panel = figure.subplots()
        alpha = 1.0 if len(labels) <= 200 else 0.3
        panel.plot(labels, predicted, "o", color=COLORS[0], markersize=5, markeredgewidth=0, alpha=alpha)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true value", ylabel="predicted value")
        panel.set_title(f"{len(labels)} {noun}s (dashed: predicted = true)", fontsize=12)
        panel.grid(alpha=0.3)
