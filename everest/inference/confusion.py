"""The classes that a classifier confuses, its most confident mistakes, and the plots of an evaluation.

C classes of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from everest.figures.curves import COLORS, LINES
from everest.inference.accuracy import HeadPredictions
from everest.system.files import write_atomically

NUMBERED: Final = 30  # classes up to which each cell shows its count
CELL: Final = (0.45, 0.09)  # inches of a cell with a count, and of one without
LETTERS: Final = (9, 5)  # points of the names next to such cells
LONGEST_NAME: Final = 32  # letters
SHADE: Final = PowerNorm(0.5, vmin=0, vmax=1)  # of shares: a few videos among many are visible too
DARK: Final = 0.3  # shares from which white is easier to read than black


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """The result of the videos of one class."""

    name: str
    support: int  # videos of this class
    correct: int
    confused_with: str | None  # the class that most of its mistakes were predicted as; None without a mistake
    confused: int  # number of these mistakes

    @property
    def accuracy(self) -> float | None:
        """Percent; None for a class without a video."""
        return 100 * self.correct / self.support if self.support else None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A video whose most probable class is not its label."""

    video: str
    label: str
    label_probability: float
    predicted: str
    probability: float


def count_confusions(head: HeadPredictions) -> NDArray[np.int64]:
    """Count videos, (C, C): rows are the true classes, columns the predicted ones."""
    means = head.means  # (videos, C)
    return confusion_matrix(head.labels, means.argmax(axis=1), labels=np.arange(means.shape[1]))


def class_results(counts: NDArray[np.int64], names: Sequence[str]) -> list[ClassResult]:
    """Return a result for each class of (C, C) confusions, worst first; classes without a video are last."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=np.int64))
    results = []
    for number, name in enumerate(names):
        most = int(mistakes[number].argmax())
        confused = int(mistakes[number, most])
        results.append(
            ClassResult(
                name=name,
                support=int(counts[number].sum()),
                correct=int(counts[number, number]),
                confused_with=names[most] if confused else None,
                confused=confused,
            )
        )
    return sorted(results, key=lambda row: (101.0 if row.accuracy is None else row.accuracy, -row.support))


def surest_mistakes(
    head: HeadPredictions, videos: Sequence[str], names: Sequence[str], *, most: int
) -> list[Mistake]:
    """Return up to `most` mistakes, the highest probability first."""
    means = head.means  # (videos, C)
    predicted, probability = means.argmax(axis=1), means.max(axis=1)
    order = np.argsort(-probability, kind="stable")
    wrong = [int(i) for i in order if predicted[i] != head.labels[i]][:most]
    return [
        Mistake(
            video=videos[i],
            label=names[int(head.labels[i])],
            label_probability=float(means[i, head.labels[i]]),
            predicted=names[int(predicted[i])],
            probability=float(probability[i]),
        )
        for i in wrong
    ]


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write a PNG of (C, C) videos by true and predicted class, shaded by the share of the true class.

    With few classes every cell shows its count; with many the image grows so that each name is readable.
    """
    numbered = len(names) <= NUMBERED
    size, points = (CELL[0], LETTERS[0]) if numbered else (CELL[1], LETTERS[1])
    side = size * len(names) + 2.5
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    shown = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(side + 0.5, side), dpi=120, layout="constrained")
        panel = figure.subplots()
        image = panel.imshow(shares, cmap="Blues", norm=SHADE, interpolation="nearest")
        # A dollar in a name is no formula.
        panel.set_xticks(range(len(names)), shown, rotation=90, fontsize=points, parse_math=False)
        panel.set_yticks(range(len(names)), shown, fontsize=points, parse_math=False)
        panel.set(xlabel="predicted", ylabel="true")
        if numbered:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if shares[row, column] > DARK else "black"
                count = str(counts[row, column])
                panel.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
        else:
            panel.tick_params(labeltop=True, labelright=True)  # names on all sides of a large image
        figure.colorbar(image, ax=panel, fraction=0.03, label="share of the true class")
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def draw_sweep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG of top-1 against the GMACs of a view, with a point per keep ratio and a line per head.

    Several heads also have a line for the share of videos with all heads correct.

    Args:
        rows: `sweep` of `everest eval --json`.
    """
    rows = sorted(rows, key=lambda row: row["gmacs"])
    gmacs = [row["gmacs"] for row in rows]
    if "heads" in rows[0]:
        lines = {head: [row["heads"][head]["top1"] for row in rows] for head in rows[0]["heads"]}
        lines["all correct"] = [row["action_top1"] for row in rows]
    else:
        lines = {"top-1": [row["top1"] for row in rows]}
    with matplotlib.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
        panel = figure.subplots()
        for number, (name, values) in enumerate(lines.items()):
            (line,) = panel.plot(gmacs, values, marker="o", linewidth=2, label=name)
            line.set(color=COLORS[number % len(COLORS)], linestyle=LINES[number % len(LINES)])
        highest = [max(values) for values in zip(*lines.values(), strict=True)]
        for row, x, y in zip(rows, gmacs, highest, strict=True):
            name = panel.annotate(f"{row['keep']:g}", (x, y), xytext=(0, 8), textcoords="offset points")
            name.set(ha="center", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
        panel.set(xlabel="GMACs of a view (the papers' GFLOPs)", ylabel="top-1 (%)")
        panel.set_title("accuracy by keep ratio", fontsize=12)
        panel.margins(x=0.08, y=0.15)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend(frameon=False)
        write_atomically(path, lambda part: figure.savefig(part, format="png"))
