"""The plots of an evaluation: confusions, calibration, precision by recall, and predicted by true numbers.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, mean_absolute_error, precision_recall_curve, r2_score

from everest.evaluation.metric_text import percent
from everest.figures.drawing import COLORS, LINES, plain, png_figure, shorten
from everest.metrics.calibration import Bins
from everest.system.text import counted

LONGEST_NAME: Final = 32  # letters
NUMBERED: Final = 30  # classes up to which each cell of a matrix shows its count
CELL: Final = (0.45, 0.1)  # inches of a cell with a count, and of one without
LETTERS: Final = (9, 6)  # points of the names next to such cells
SMALLEST: Final = 3.0  # inches: two classes leave room for the labels
SHADE: Final = PowerNorm(0.5, vmin=0, vmax=1)  # of shares: a few videos among many are visible too
DARK: Final = 0.5  # shares from which white is easier to read than black
NAMED: Final = 10  # our choice: classes with a curve of their own in color
FEW: Final = 200  # our choice: up to this number of videos, points are opaque


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
    with png_figure(path, (side + 1, side), points=10, framed=True) as figure:
        panel = figure.subplots()
        image = panel.imshow(shares, cmap="Blues", norm=SHADE, interpolation="nearest")
        panel.set_xticks(range(len(names)), shown, rotation=90, fontsize=points)
        panel.set_yticks(range(len(names)), shown, fontsize=points)
        panel.set(xlabel="predicted class", ylabel="true class")
        panel.set_title(f"{counts.sum()} videos by true and predicted class")
        if is_numbered:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if shares[row, column] > DARK else "black"
                style: Any = {"ha": "center", "va": "center", "color": color, "fontsize": 8}
                panel.text(column, row, str(counts[row, column]), **style)
        bar = figure.colorbar(image, ax=panel, fraction=0.03, format=PercentFormatter(1))
        bar.set_label("share of the true class")


def draw_reliability(path: Path, before: Bins, after: Bins | None) -> None:
    """Write a PNG of accuracy by confidence; a point is a bin, and its area the number of predictions.

    Args:
        before: of the probabilities as predicted.
        after: of the probabilities with a temperature; None draws only `before`.
    """
    shown = {"as predicted": before} | ({} if after is None else {"with temperature": after})
    with png_figure(path, (7, 6)) as figure:
        panel = figure.subplots()
        panel.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
        for (name, bins), color in zip(shown.items(), COLORS, strict=False):
            some = bins.count > 0
            label = f"{name}: calibration error (ECE) {percent(100 * bins.error)}"
            panel.plot(bins.confidence[some], bins.accuracy[some], color=color, label=label)
            areas = 400 * bins.count[some] / bins.count.max()
            panel.scatter(bins.confidence[some], bins.accuracy[some], areas, color=color, alpha=0.6)
        of_predicted = "confidence (probability of the predicted class)"
        panel.set_xlabel("probability of the class" if before.pairs else of_predicted)
        panel.set_ylabel("share with the class" if before.pairs else "accuracy")
        panel.set(xlim=(0, 1), ylim=(0, 1))
        noun = "pair of a video and a class" if before.pairs else "video"
        panel.set_title(f"{before.count.sum()} predictions, each of a {noun}", fontsize=12)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(alpha=0.3)
        figure.legend(loc="outside lower center", frameon=False, fontsize="small")


def draw_precision_recall(
    path: Path, classes: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]]
) -> None:
    """Write a PNG of precision by recall, with a curve per class and the mean of the average precisions.

    The first ten classes are named; the others are gray.

    Args:
        classes: by name, in the order of the legend, whether each video has the class and its probability,
            (V,) each; at least one class, and a video of each.
    """
    precisions = []
    with png_figure(path, (9, 5.5)) as figure:
        panel = figure.subplots()
        for number, (name, (labels, scores)) in enumerate(classes.items()):
            precision, recall, _ = precision_recall_curve(labels, scores)
            precisions.append(float(average_precision_score(labels, scores)))
            style: dict[str, Any] = {"color": "#CCCCCC", "linewidth": 1}
            if number < NAMED:
                style = {"color": COLORS[number % len(COLORS)], "linewidth": 2, "zorder": 3}
                style["linestyle"] = LINES[number // len(COLORS) % len(LINES)]
                style["label"] = f"{percent(100 * precisions[-1])}  {plain(shorten(name, LONGEST_NAME))}"
            elif number == NAMED:
                style["label"] = counted(len(classes) - NAMED, "other class")
            # Steps: the area below them is the average precision.
            panel.plot(recall, precision, drawstyle="steps-post", **style)
        title: Any = {"title": "average precision", "alignment": "left"}
        figure.legend(loc="outside right upper", frameon=False, fontsize="small", **title)
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
    with png_figure(path, (6, 6)) as figure:
        panel = figure.subplots()
        alpha = 1.0 if len(truth) <= FEW else 0.3
        panel.plot(truth, predicted, "o", color=COLORS[0], markersize=5, markeredgewidth=0, alpha=alpha)
        panel.axline((float(truth[0]), float(truth[0])), slope=1, linestyle="--", color="black", linewidth=1)
        panel.set(aspect="equal", adjustable="datalim", xlabel="true value", ylabel="predicted value")
        measures = f"{r2}, mean absolute error (MAE) {error:.3g}"
        panel.set_title(f"{len(truth)} videos (dashed: predicted = true)\n{measures}", fontsize=12)
        panel.grid(alpha=0.3)
