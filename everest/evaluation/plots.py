"""The plots of an evaluation: confusions, calibration, precision by recall, and predicted by true numbers.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, mean_absolute_error, precision_recall_curve, r2_score

from everest.evaluation.metric_text import percent
from everest.figures.drawing import COLORS, LINES, plain, png_figure, shorten
from everest.metrics.calibration import Bins
from everest.system.text import counted

LONGEST_NAME: Final = 32  # letters

# Of the matrix of confusions.
NUMBERED: Final = 30  # classes up to which each cell shows its count
CELL: Final = (0.45, 0.1)  # inches of a cell with a count, and of one without
LETTERS: Final = (9, 6)  # points of the names next to such cells
SMALLEST: Final = 3.0  # inches: two classes leave room for the labels
SHADE: Final = PowerNorm(0.5, vmin=0, vmax=1)  # of shares: a few videos among many are visible too
DARK: Final = 0.5  # shares from which white is easier to read than black
CORRECT, CONFUSED = "Blues", "Oranges"

# Of the reliability diagram.
WIDTH: Final = 5.0  # inches of a diagram
HEIGHT: Final = 7.5  # inches of the figure
HEIGHTS: Final = (4, 1)  # of the diagram and of the counts
SPREAD: Final = 100  # our choice: from this ratio of the largest to the smallest count on, a log axis
TITLES: Final = {
    False: "{count} videos by the probability of their predicted class",
    True: "{count} pairs of a video and a class by the probability of the class",
}

# Of precision by recall, and of the scatter plot.
NAMED: Final = 10  # our choice: classes with a color of their own
OTHER: Any = {"color": "#CCCCCC", "linewidth": 1}  # the curves of further classes
FEW: Final = 200  # our choice: up to this number of videos, points are opaque
PALE: Final = 0.3


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return names for an axis. If one is long, all begin with a number, and long ones lose their middle."""
    if all(len(name) <= LONGEST_NAME for name in names):
        return list(names)
    short = [name if len(name) <= LONGEST_NAME else shorten(name, LONGEST_NAME - 5) for name in names]
    return [f"{number} {name}" for number, name in enumerate(short)]


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write a PNG of (C, C) videos by true and predicted class, shaded by the share of the true class.

    With few classes every cell shows its count; with many the image grows so that each name is readable.
    """
    numbered = len(names) <= NUMBERED
    size, points = (CELL[0], LETTERS[0]) if numbered else (CELL[1], LETTERS[1])
    side = max(size * len(names), SMALLEST) + 2.5
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    shown = [plain(name) for name in shorten_names(names)]
    diagonal = np.eye(len(names), dtype=bool)[..., None]
    scales = [ScalarMappable(SHADE, name) for name in (CORRECT, CONFUSED)]
    colors = np.where(diagonal, *(scale.to_rgba(shares) for scale in scales))  # (C, C, 4)
    colors[(counts == 0) & ~diagonal[..., 0]] = 1  # white
    with png_figure(path, (side + 1, side), points=10, framed=True) as figure:
        panel = figure.subplots()
        panel.imshow(colors, interpolation="nearest")
        panel.set_xticks(range(len(names)), shown, rotation=90, fontsize=points)
        panel.set_yticks(range(len(names)), shown, fontsize=points)
        panel.set(xlabel="predicted class", ylabel="true class")
        panel.set_title(f"{counts.sum()} videos by true and predicted class")
        if numbered:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if shares[row, column] > DARK else "black"
                count = str(counts[row, column])
                panel.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
        else:
            panel.tick_params(labeltop=True, labelright=True)  # names on all sides of a large image
        for scale, what in zip(scales, ("correct", "confused"), strict=True):
            bar = figure.colorbar(scale, ax=panel, fraction=0.03, ticks=[0, 0.05, 0.2, 0.5, 1])
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
            bar.set_label(f"{what}, share of the true class")


def draw_reliability(path: Path, before: Bins, after: Bins | None) -> None:
    """Write a PNG of accuracy by confidence, with the number of predictions in each bin below.

    A point is a bin. The line from it to the diagonal is its calibration error.

    Args:
        before: of the probabilities as predicted.
        after: of the probabilities with a temperature, in a second diagram; None draws only `before`.
    """
    shown = {"": before} if after is None else {"as predicted: ": before, "with temperature: ": after}
    with png_figure(path, (WIDTH * len(shown) + 1, HEIGHT)) as figure:
        figure.set_layout_engine("constrained", wspace=0.08)  # the last tick is not next to the first one
        panels = figure.subplots(
            2, len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=HEIGHTS
        )
        for (title, bins), (diagram, counts) in zip(shown.items(), panels.T, strict=True):
            some = bins.count > 0
            confidence, accuracy = bins.confidence[some], bins.accuracy[some]
            diagram.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
            error: Any = {"color": COLORS[1], "linewidth": 4, "alpha": 0.5, "label": "error of a bin"}
            diagram.vlines(confidence, confidence, accuracy, **error)
            point: Any = {"color": COLORS[0], "markersize": 8, "clip_on": False, "zorder": 3, "label": "bin"}
            diagram.plot(confidence, accuracy, "o", **point)
            diagram.set(xlim=(0, 1), ylim=(0, 1))
            diagram.yaxis.set_major_formatter(PercentFormatter(1))
            diagram.set_title(f"{title}calibration error (ECE) {percent(100 * bins.error)}", fontsize=12)
            width = 1 / len(bins.count)
            starts = np.arange(len(bins.count)) * width
            counts.bar(starts, bins.count, width, align="edge", color=COLORS[0], alpha=0.6)
            of_predicted = "confidence (probability of the predicted class)"
            counts.set_xlabel("probability of the class" if bins.pairs else of_predicted)
            counts.xaxis.set_major_formatter(PercentFormatter(1))
            for panel in (diagram, counts):
                panel.grid(alpha=0.3)
        every = np.concatenate([bins.count[bins.count > 0] for bins in shown.values()])
        if every.max() > SPREAD * every.min():
            panels[1, 0].set_yscale("log")
            panels[1, 0].set_ylim(bottom=every.min() / 2)  # the smallest bar has a height
        panels[0, 0].set_ylabel("share with the class" if before.pairs else "accuracy (share correct)")
        panels[1, 0].set_ylabel("pairs" if before.pairs else "videos")
        samples = panels[0, 0].get_legend_handles_labels()
        figure.legend(*samples, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
        figure.suptitle(TITLES[before.pairs].format(count=before.count.sum()), fontsize=12)


def draw_precision_recall(
    path: Path, classes: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]]
) -> None:
    """Write a PNG of precision by recall, with a curve per class and the mean of the average precisions.

    The first ten classes are named; the others are gray, and the legend counts them.

    Args:
        classes: by name, in the order of the legend, whether each video has the class and its probability,
            (V,) each; at least one class, and a video of each.
    """
    lines: list[Line2D] = []
    precisions = []
    with png_figure(path, (9, 5.5)) as figure:
        panel = figure.subplots()
        for number, (name, (labels, scores)) in enumerate(classes.items()):
            precision, recall, _ = precision_recall_curve(labels, scores)
            precisions.append(float(average_precision_score(labels, scores)))
            style: Any = OTHER
            if number < NAMED:
                style = {"color": COLORS[number % len(COLORS)], "linewidth": 2, "zorder": 3}
                style["linestyle"] = LINES[number // len(COLORS) % len(LINES)]
                short = plain(shorten(name, LONGEST_NAME))
                text = f"{short}  {percent(100 * precisions[-1])}"
                lines.append(Line2D([], [], label=text, **style))
            # Steps: the area below them is the average precision.
            panel.plot(recall, precision, drawstyle="steps-post", **style)
        if len(classes) > NAMED:
            lines.append(Line2D([], [], label=counted(len(classes) - NAMED, "other class"), **OTHER))
        figure.legend(
            handles=lines,
            loc="outside right upper",
            frameon=False,
            fontsize="small",
            title="average precision",
            alignment="left",
        )
        mean = percent(100 * float(np.mean(precisions)))
        panel.set_title(f"{len(classes)} classes, mean average precision (mAP) {mean}", fontsize=12)
        panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(alpha=0.3)


def draw_scatter(path: Path, truth: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]]) -> None:
    """Write a PNG of predicted by true values, with a point per video and the line of equal values.

    Args:
        truth, predicted: (V,), finite; at least one.
    """
    error = mean_absolute_error(truth, predicted)
    # R² compares with the mean of the true values; if all are equal, it divides by 0.
    r2 = f"R² {r2_score(truth, predicted):.3f}" if np.ptp(truth) > 0 else "no R² (equal true values)"
    both = np.concatenate([truth, predicted]).astype(np.float64)  # (2 V,)
    low, high = float(both.min()), float(both.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    with png_figure(path, (6, 6)) as figure:
        panel = figure.subplots()
        panel.plot(limits, limits, "--", color="black", linewidth=1)
        alpha = 1.0 if len(truth) <= FEW else PALE
        panel.plot(truth, predicted, "o", color=COLORS[0], markersize=5, markeredgewidth=0, alpha=alpha)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true value", ylabel="predicted value")
        measures = f"{r2}, mean absolute error (MAE) {error:.3g}"
        panel.set_title(f"{len(truth)} videos (dashed: predicted = true)\n{measures}", fontsize=12)
        panel.grid(alpha=0.3)
