"""One section of the report for each head: its plots, and the values of its template.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from everest.config.heads import MULTI_LABEL
from everest.evaluation.plots import draw_confusion, draw_precision_recall, draw_reliability, draw_scatter
from everest.figures.drawing import data_uri
from everest.metrics.calibration import apply_temperature, expected_calibration_error
from everest.metrics.metrics import per_class
from everest.metrics.predicted import HeadPredictions

LONGEST_PLOT_NAME: Final = 200  # a file name has up to 255 bytes
CONFUSION: Final = "confusion"  # with a head's name, and .png
CURVES: Final = "precision-recall"
SCATTER: Final = "scatter"
RELIABILITY: Final = "reliability"
MISTAKES: Final = 12  # shown per head
CONFUSIONS: Final = 20  # listed per head

Section = Mapping[str, Any]  # the values of its template
Names = Sequence[str]  # of videos or classes
ClassProbability = tuple[str, float]  # name and probability


class ClassResult(NamedTuple):
    """The result of the videos of one class."""

    number: int  # the label
    name: str
    support: int  # videos of this class
    correct: int
    recall: float | None  # percent of its videos; None for a class without a video
    confused_with: str | None  # the class that most of its mistakes were predicted as; None without a mistake
    confused: int  # number of these mistakes


class Confusion(NamedTuple):
    """Videos of one class that were predicted as another."""

    label: str
    predicted: str
    videos: int
    support: int  # videos of the class


class Mistake(NamedTuple):
    """A video whose most probable class is not its label."""

    video: str
    label: str
    label_probability: float
    predicted: str
    probability: float


class WrongClasses(NamedTuple):
    """A video of which some classes are not predicted, or predicted and not there."""

    video: str
    missing: Sequence[ClassProbability]  # classes of the video, the most improbable first
    wrong: Sequence[ClassProbability]  # classes that it does not have, the most probable first
    loss: float  # binary cross-entropy, the mean over all classes


class NumberError(NamedTuple):
    """A video and its predicted number."""

    video: str
    label: float
    predicted: float
    error: float


def make_section(
    folder: Path, head: HeadPredictions, *, videos: Names, names: Names, frames_of: Callable[[str], str]
) -> Section:
    """Write the plots of a head and return the values of its part of the page.

    Args:
        videos: (V,) names in the list.
        names: of the classes.
        frames_of: reads some frames of a video, as a data URI.
    """
    kind, template, fill, worst = _BY_TASK[head.head.task]
    plot = _plot(folder, kind, head)
    plot.unlink(missing_ok=True)  # of an earlier evaluation
    section = fill(plot, head, names)
    section |= {"reliability": _reliability(folder, head)} if head.head.task != "regression" else {}
    mistakes = [(mistake, frames_of(mistake.video)) for mistake in worst(head, videos, names)]
    image = data_uri("image/png", plot.read_bytes()) if plot.exists() else None
    shared = {"template": template, "name": head.head.name, "plot": image, "file": plot.name}
    return {**shared, **section, "mistakes": mistakes}


def _of_one(plot: Path, head: HeadPredictions, names: Names) -> dict[str, Any]:
    counts = count_confusions(head)  # (C, C)
    draw_confusion(plot, counts, names)
    return {
        "file": quote(plot.name),  # a link
        "classes": class_results(counts, names),
        "scores": per_class(head, names),  # by the number of a class
        "confusions": most_frequent_confusions(counts, names, most=CONFUSIONS),
    }


def _of_several(plot: Path, head: HeadPredictions, names: Names) -> dict[str, Any]:
    rows = per_class(head, names)
    used = [number for number, row in enumerate(rows) if row["videos"]]
    used.sort(key=lambda number: -rows[number]["videos"])  # the most frequent ones have a color
    if used:
        means = head.means
        draw_precision_recall(plot, {names[c]: (head.labels[:, c], means[:, c]) for c in used})
    worst = sorted(enumerate(rows), key=lambda row: 101.0 if row[1]["ap"] is None else row[1]["ap"])
    return {"classes": worst}  # pairs of number and scores


def _of_numbers(plot: Path, head: HeadPredictions, names: Names) -> dict[str, Any]:
    draw_scatter(plot, head.labels, head.means[:, 0].astype(np.float64))
    return {}


def _reliability(folder: Path, head: HeadPredictions) -> str:
    """Draw accuracy by confidence, also with the temperature if the weights have one; returns a data URI."""
    task, calibration = head.head.task, head.head.calibration
    assert task != "regression"
    _, before = expected_calibration_error(head.means, head.labels)
    after = None
    if calibration is not None:
        scaled = apply_temperature(head.means, calibration.temperature, task)
        _, after = expected_calibration_error(scaled, head.labels)
    plot = _plot(folder, RELIABILITY, head)
    draw_reliability(plot, before, after)
    return data_uri("image/png", plot.read_bytes())


def _plot(folder: Path, kind: str, head: HeadPredictions) -> Path:
    name = head.head.name
    suffix = f"-{quote(name, safe='')[:LONGEST_PLOT_NAME]}" if name else ""
    return folder / f"{kind}{suffix}.png"


def count_confusions(head: HeadPredictions) -> NDArray[np.int64]:
    """Count videos, (C, C): rows are the true classes, columns the predicted ones."""
    means = head.means  # (V, C)
    return confusion_matrix(head.labels, means.argmax(axis=1), labels=np.arange(means.shape[1]))


def class_results(counts: NDArray[np.int64], names: Names) -> list[ClassResult]:
    """Return a result for each class of (C, C) confusions, worst first; classes without a video are last."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=np.int64))
    results = []
    for number, name in enumerate(names):
        support, correct = int(counts[number].sum()), int(counts[number, number])
        most = int(mistakes[number].argmax())
        confused = int(mistakes[number, most])
        recall = 100 * correct / support if support else None
        confused_with = names[most] if confused else None
        results.append(ClassResult(number, name, support, correct, recall, confused_with, confused))
    return sorted(results, key=lambda row: (101.0 if row.recall is None else row.recall, -row.support))


def most_frequent_confusions(counts: NDArray[np.int64], names: Names, *, most: int) -> list[Confusion]:
    """Return up to `most` pairs of (C, C) confusions, those with most videos first, then by their share."""
    support = counts.sum(axis=1)  # (C,)
    pairs = [(int(i), int(j)) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
    pairs.sort(key=lambda pair: (-counts[pair], support[pair[0]]))
    return [Confusion(names[i], names[j], int(counts[i, j]), int(support[i])) for i, j in pairs[:most]]


def surest_mistakes(
    head: HeadPredictions, videos: Names, names: Names, *, most: int = MISTAKES
) -> list[Mistake]:
    """Return up to `most` mistakes, the highest probability first."""
    means = head.means  # (V, C)
    labels: list[int] = head.labels.tolist()
    predicted, probability = means.argmax(axis=1), means.max(axis=1)
    order = np.argsort(-probability, kind="stable")
    wrong = [int(i) for i in order if predicted[i] != labels[i]][:most]
    return [
        Mistake(
            video=videos[i],
            label=names[labels[i]],
            label_probability=float(means[i, labels[i]]),
            predicted=names[int(predicted[i])],
            probability=float(probability[i]),
        )
        for i in wrong
    ]


def wrong_classes(
    head: HeadPredictions, videos: Names, names: Names, *, most: int = MISTAKES
) -> list[WrongClasses]:
    """Return up to `most` videos with a mistake of a multi-label head, the highest loss first."""
    means, labels, chosen = head.means, head.labels, head.chosen  # (V, C) each
    right = np.where(labels, means, 1 - means)
    losses = -np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean(axis=1)  # (V,)
    mistaken = (labels != chosen).any(axis=1)  # (V,)
    worst = [int(i) for i in np.argsort(-losses, kind="stable") if mistaken[i]][:most]

    def named(i: int, which: NDArray[np.bool_], sign: int) -> list[ClassProbability]:
        classes = sorted(np.flatnonzero(which).tolist(), key=lambda c: sign * means[i, c])
        return [(names[c], float(means[i, c])) for c in classes]

    return [
        WrongClasses(
            video=videos[i],
            missing=named(i, labels[i] & ~chosen[i], 1),
            wrong=named(i, chosen[i] & ~labels[i], -1),
            loss=float(losses[i]),
        )
        for i in worst
    ]


def largest_errors(
    head: HeadPredictions, videos: Names, names: Names, *, most: int = MISTAKES
) -> list[NumberError]:
    """Return up to `most` videos of a head of numbers, the largest error first."""
    labels, predicted = head.labels.tolist(), head.means[:, 0].astype(np.float64).tolist()
    errors = [answer - label for answer, label in zip(predicted, labels, strict=True)]
    worst = sorted(range(len(errors)), key=lambda i: -abs(errors[i]))[:most]
    return [NumberError(videos[i], labels[i], predicted[i], errors[i]) for i in worst]


# The plot of a task, its template, the values of the template, and the worst videos.
_BY_TASK: Final[Mapping[str, tuple[str, str, Callable[..., dict[str, Any]], Callable[..., list[Any]]]]] = {
    "single-label": (CONFUSION, "page_single_label.html", _of_one, surest_mistakes),
    MULTI_LABEL: (CURVES, "page_multi_label.html", _of_several, wrong_classes),
    "regression": (SCATTER, "page_regression.html", _of_numbers, largest_errors),
}
