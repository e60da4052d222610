"""The reliability diagram of a classifier: how often predictions are correct, by their confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from everest.evaluation.metric_text import percent
from everest.figures.curves import COLORS
from everest.metrics.calibration import Bins
from everest.system.files import write_atomically

WIDTH: Final = 5.0  # inches of a diagram
HEIGHT: Final = 7.5  # inches of the figure
HEIGHTS: Final = (4, 1)  # of the diagram and of the counts
SPREAD: Final = 100  # our choice: from this ratio of the largest to the smallest count on, a log axis
TITLES: Final = {
    False: "{count} videos by the probability of their predicted class",
    True: "{count} pairs of a video and a class by the probability of the class",
}


def draw_reliability(path: Path, before: Bins, after: Bins | None) -> None:
    """Write a PNG of accuracy by confidence, with the number of predictions in each bin below.

    A point is a bin. The line from it to the diagonal is its calibration error.

    Args:
        before: of the probabilities as predicted.
        after: of the probabilities with a temperature, in a second diagram; None draws only `before`.
    """
    shown = {"": before} if after is None else {"as predicted: ": before, "with temperature: ": after}
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(WIDTH * len(shown) + 1, HEIGHT), dpi=120)
        figure.set_layout_engine("constrained", wspace=0.08)  # the last tick is not next to the first one
        panels = figure.subplots(
            2, len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=HEIGHTS
        )
        for (title, bins), (diagram, counts) in zip(shown.items(), panels.T, strict=True):
            _draw_bins(diagram, bins)
            _draw_counts(counts, bins)
            error = percent(100 * bins.error)
            diagram.set_title(f"{title}calibration error (ECE) {error}", fontsize=12)
        every = np.concatenate([bins.count[bins.count > 0] for bins in shown.values()])
        if every.max() > SPREAD * every.min():
            panels[1, 0].set_yscale("log")
            panels[1, 0].set_ylim(bottom=every.min() / 2)  # the smallest bar has a height
        panels[0, 0].set_ylabel("share with the class" if before.pairs else "accuracy (share correct)")
        panels[1, 0].set_ylabel("pairs" if before.pairs else "videos")
        samples = panels[0, 0].get_legend_handles_labels()
        figure.legend(*samples, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
        figure.suptitle(TITLES[before.pairs].format(count=before.count.sum()), fontsize=12)
        write_atomically(path, lambda part: figure.savefig(part, format="png", bbox_inches="tight"))


def _draw_bins(panel: Axes, bins: Bins) -> None:
    """Draw a point for each bin that is not empty, its distance to the diagonal, and the diagonal."""
    some = bins.count > 0
    confidence, accuracy = bins.confidence[some], bins.accuracy[some]
    panel.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
    panel.vlines(
        confidence, confidence, accuracy, color=COLORS[1], linewidth=4, alpha=0.5, label="error of a bin"
    )
    panel.plot(confidence, accuracy, "o", color=COLORS[0], markersize=8, clip_on=False, zorder=3, label="bin")
    panel.set(xlim=(0, 1), ylim=(0, 1))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.grid(alpha=0.3)


def _draw_counts(panel: Axes, bins: Bins) -> None:
    """Draw the number of predictions in each bin."""
    width = 1 / len(bins.count)
    panel.bar(np.arange(len(bins.count)) * width, bins.count, width, align="edge", color=COLORS[0], alpha=0.6)
    panel.set_xlabel(
        "probability of the class" if bins.pairs else "confidence (probability of the predicted class)"
    )
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.grid(alpha=0.3)
