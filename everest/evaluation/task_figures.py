"""The plots of an evaluation of several classes per video (multi-label), and of numbers (regression).

C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score

from everest.evaluation.metric_text import percent
from everest.figures.curves import COLORS, LINES
from everest.figures.fonts import name_entries
from everest.system.files import write_atomically
from everest.system.text import counted, escape_bytes

NAMED: Final = 10  # our choice: classes with a color of their own
LONGEST_NAME: Final = 32  # letters
OTHER: Any = {"color": "#CCCCCC", "linewidth": 1}  # the curves of further classes
FEW: Final = 200  # our choice: up to this number of videos, points are opaque
PALE: Final = 0.3


class PrecisionRecall(NamedTuple):
    """The curve of a class with a positive video, as sklearn's `precision_recall_curve` returns it."""

    recall: NDArray[np.float64]  # (points,) descending to 0
    precision: NDArray[np.float64]  # (points,)
    ap: float  # average precision, a share from 0 to 1


def draw_precision_recall(path: Path, curves: Mapping[str, PrecisionRecall]) -> None:
    """Write a PNG of precision by recall, with a curve per class and the mean of the average precisions.

    The first ten classes are named; the others are gray, and the legend counts them.

    Args:
        curves: by the name of the class, in the order of the legend; at least one.
    """
    lines: list[tuple[Line2D, str]] = []
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
        panel = figure.subplots()
        for number, (name, (recall, precision, ap)) in enumerate(curves.items()):
            style: Any = OTHER
            if number < NAMED:
                line = LINES[number // len(COLORS) % len(LINES)]
                style = {
                    "color": COLORS[number % len(COLORS)],
                    "linestyle": line,
                    "linewidth": 2,
                    "zorder": 3,
                }
                lines.append((Line2D([], [], **style), f"{_shorten(name)}  {percent(100 * ap)}"))
            # Steps: the area below them is the average precision.
            panel.plot(recall, precision, drawstyle="steps-post", **style)
        if len(curves) > NAMED:
            lines.append((Line2D([], [], **OTHER), counted(len(curves) - NAMED, "other class")))
        legend = figure.legend(
            handles=[line for line, _ in lines],
            labels=["class"] * len(lines),
            loc="outside right upper",
            frameon=False,
            fontsize="small",
            title="average precision",
            alignment="left",
        )
        name_entries(legend, [name for _, name in lines])
        mean = percent(100 * float(np.mean([curve[2] for curve in curves.values()])))
        panel.set_title(f"{len(curves)} classes, mean average precision (mAP) {mean}", fontsize=12)
        panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(alpha=0.3)
        write_atomically(path, lambda part: figure.savefig(part, format="png", bbox_inches="tight"))


def _shorten(name: str) -> str:
    """Return a name for a legend; a long one loses its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def draw_scatter(
    path: Path, truth: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]], unit_name: str
) -> None:
    """Write a PNG of predicted by true values, with a point per video and the line of equal values.

    Args:
        truth, predicted: (videos,), finite; at least one.
        unit_name: of the values, such as `seconds`; may be empty.
    """
    error = mean_absolute_error(truth, predicted)
    # R² compares with the mean of the true values; if all are equal, it divides by 0.
    r2 = f"R² {r2_score(truth, predicted):.3f}" if np.ptp(truth) > 0 else "no R² (equal true values)"
    unit = escape_bytes(unit_name)
    both = np.concatenate([truth, predicted]).astype(np.float64)  # (2 videos,)
    low, high = float(both.min()), float(both.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
        panel = figure.subplots()
        panel.plot(limits, limits, "--", color="black", linewidth=1)
        alpha = 1.0 if len(truth) <= FEW else PALE
        panel.plot(truth, predicted, "o", color=COLORS[0], markersize=5, markeredgewidth=0, alpha=alpha)
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        ending = f" ({unit})" if unit else ""
        # A dollar in a unit is no formula.
        panel.set_xlabel(f"true value{ending}", parse_math=False)
        panel.set_ylabel(f"predicted value{ending}", parse_math=False)
        measures = f"{r2}, mean absolute error (MAE) {error:.3g} {unit}".rstrip()
        title = f"{len(truth)} videos (dashed: predicted = true)\n{measures}"
        panel.set_title(title, fontsize=12, parse_math=False)
        panel.grid(alpha=0.3)
        write_atomically(path, lambda part: figure.savefig(part, format="png", bbox_inches="tight"))
