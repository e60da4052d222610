"""Which classes are taken for which, and the mistakes that a classifier is surest of.

C classes of a head.

Pictures of a test, as PNG: the confusion matrix, and accuracy against computation.

C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from everest.figures.curves import COLORS, LINES
from everest.inference.accuracy import HeadScores
from everest.system.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How the videos of one class fared."""

    name: str
    support: int  # videos of this class
    right: int
    confused_with: str | None  # the class that most others were taken for; None without a mistake
    confused: int  # how many these were

    @property
    def accuracy(self) -> float | None:
        """Percent; None for a class without a video."""
        return 100 * self.right / self.support if self.support else None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A video whose most probable class is not its own."""

    video: str
    label: str
    label_probability: float
    predicted: str
    probability: float


def count_confusions(head: HeadScores) -> NDArray[np.int64]:
    """(C, C) videos: rows are the true classes, columns the predicted ones."""
    means = head.means  # (videos, C)
    return confusion_matrix(head.labels, means.argmax(axis=1), labels=np.arange(means.shape[1]))


def class_results(counts: NDArray[np.int64], names: Sequence[str]) -> list[ClassResult]:
    """A result for each class of (C, C) confusions, the worst first and those without a video last."""
    others = counts * (1 - np.eye(len(counts), dtype=np.int64))
    found = []
    for number, name in enumerate(names):
        most = int(others[number].argmax())
        confused = int(others[number, most])
        found.append(
            ClassResult(
                name=name,
                support=int(counts[number].sum()),
                right=int(counts[number, number]),
                confused_with=names[most] if confused else None,
                confused=confused,
            )
        )
    return sorted(found, key=lambda row: (101.0 if row.accuracy is None else row.accuracy, -row.support))


def surest_mistakes(
    head: HeadScores, videos: Sequence[str], names: Sequence[str], *, most: int
) -> list[Mistake]:
    """Up to `most` mistakes, those with the highest probability first."""
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


NUMBERED: Final = 30  # classes up to which each cell tells its count
CELL: Final = (0.45, 0.09)  # inches of a cell that is numbered, and of one that is not
LETTERS: Final = (9, 5)  # points of names beside them
LONGEST_NAME: Final = 32  # letters
SHADE: Final = PowerNorm(0.5, vmin=0, vmax=1)  # of shares: a few videos among many are seen too
DARK: Final = 0.3  # shares from which white is read better than black


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """A PNG of (C, C) videos by true and predicted class, shaded by the share of the true class.

    With few classes every cell shows its count; with many the picture grows so that each name can be read.
    """
    numbered = len(names) <= NUMBERED
    size, points = (CELL[0], LETTERS[0]) if numbered else (CELL[1], LETTERS[1])
    side = size * len(names) + 2.5
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(side + 0.5, side), dpi=120, layout="constrained")
        panel = figure.subplots()
        picture = panel.imshow(shares, cmap="Blues", norm=SHADE, interpolation="nearest")
        places, shown = range(len(names)), [_short(name) for name in names]
        # A dollar in a name is no formula.
        panel.set_xticks(places, shown, rotation=90, fontsize=points, parse_math=False)
        panel.set_yticks(places, shown, fontsize=points, parse_math=False)
        panel.set(xlabel="predicted", ylabel="true")
        if numbered:
            _number(panel, counts, shares)
        else:
            panel.tick_params(labeltop=True, labelright=True)  # names on all sides of a large picture
        figure.colorbar(picture, ax=panel, fraction=0.03, label="share of the true class")
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _number(panel: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[row, column] > DARK else "black"
        count = str(counts[row, column])
        panel.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)


def draw_sweep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A PNG of top-1 against the GMACs of a view, a point for each share of the tokens; a line a head.

    Args:
        rows: `sweep` of `everest eval --json`.
    """
    rows = sorted(rows, key=lambda row: row["gmacs"])
    gmacs = [row["gmacs"] for row in rows]
    lines = _lines(rows)
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
        panel.set_title("accuracy with the kept share of the tokens", fontsize=12)
        panel.margins(x=0.08, y=0.15)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend(frameon=False)
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _lines(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Top-1 by name of a head; of several heads also the share with all right."""
    if "heads" not in rows[0]:
        return {"top-1": [row["top1"] for row in rows]}
    heads = {name: [row["heads"][name]["top1"] for row in rows] for name in rows[0]["heads"]}
    return {**heads, "all right": [row["action_top1"] for row in rows]}
