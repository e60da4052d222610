"""The classes that a classifier confuses, its most confident mistakes, and the plot of all of them.

C classes of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from everest.metrics.predicted import HeadPredictions
from everest.system.files import write_atomically

NUMBERED: Final = 30  # classes up to which each cell shows its count
CELL: Final = (0.45, 0.1)  # inches of a cell with a count, and of one without
LETTERS: Final = (9, 6)  # points of the names next to such cells
SMALLEST: Final = 3.0  # inches: two classes leave room for the labels
LONGEST_NAME: Final = 32  # letters
SHADE: Final = PowerNorm(0.5, vmin=0, vmax=1)  # of shares: a few videos among many are visible too
DARK: Final = 0.5  # shares from which white is easier to read than black
CORRECT, CONFUSED = "Blues", "Oranges"


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """The result of the videos of one class."""

    number: int  # the label
    name: str
    support: int  # videos of this class
    correct: int
    confused_with: str | None  # the class that most of its mistakes were predicted as; None without a mistake
    confused: int  # number of these mistakes

    @property
    def recall(self) -> float | None:
        """Percent of its videos; None for a class without a video."""
        return 100 * self.correct / self.support if self.support else None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Videos of one class that were predicted as another."""

    label: str
    predicted: str
    videos: int
    support: int  # videos of the class


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
                number=number,
                name=name,
                support=int(counts[number].sum()),
                correct=int(counts[number, number]),
                confused_with=names[most] if confused else None,
                confused=confused,
            )
        )
    return sorted(results, key=lambda row: (101.0 if row.recall is None else row.recall, -row.support))


def most_frequent_confusions(
    counts: NDArray[np.int64], names: Sequence[str], *, most: int
) -> list[Confusion]:
    """Return up to `most` pairs of (C, C) confusions, those with most videos first, then by their share."""
    support = counts.sum(axis=1)  # (C,)
    pairs = [(int(i), int(j)) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
    pairs.sort(key=lambda pair: (-counts[pair], support[pair[0]]))
    return [
        Confusion(label=names[i], predicted=names[j], videos=int(counts[i, j]), support=int(support[i]))
        for i, j in pairs[:most]
    ]


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


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return names for an axis. If one is long, all begin with a number, and long ones lose their middle."""
    if all(len(name) <= LONGEST_NAME for name in names):
        return list(names)
    half = (LONGEST_NAME - 6) // 2
    short = [name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}" for name in names]
    return [f"{number} {name}" for number, name in enumerate(short)]


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write a PNG of (C, C) videos by true and predicted class, shaded by the share of the true class.

    With few classes every cell shows its count; with many the image grows so that each name is readable.
    """
    numbered = len(names) <= NUMBERED
    size, points = (CELL[0], LETTERS[0]) if numbered else (CELL[1], LETTERS[1])
    side = max(size * len(names), SMALLEST) + 2.5
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    shown = shorten_names(names)
    diagonal = np.eye(len(names), dtype=bool)[..., None]
    scales = [ScalarMappable(SHADE, name) for name in (CORRECT, CONFUSED)]
    colors = np.where(diagonal, *(scale.to_rgba(shares) for scale in scales))  # (C, C, 4)
    colors[(counts == 0) & ~diagonal[..., 0]] = 1  # white
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
        panel = figure.subplots()
        panel.imshow(colors, interpolation="nearest")
        # A dollar in a name is no formula.
        panel.set_xticks(range(len(names)), shown, rotation=90, fontsize=points, parse_math=False)
        panel.set_yticks(range(len(names)), shown, fontsize=points, parse_math=False)
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
        # Tight: labels that are longer than the matrix are not cut.
        write_atomically(path, lambda part: figure.savefig(part, format="png", bbox_inches="tight"))
