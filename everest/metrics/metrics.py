"""The metrics of an evaluation, and its outputs as a file; `TASKS` has the functions of each task.

Metrics of classes are in percent, errors of numbers in the unit of the labels.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Heads
from everest.lists.classes import Classes
from everest.lists.labels import JOINED_BY, Label
from everest.metrics.head_metrics import (
    average_precisions,
    chances,
    choose_thresholds,
    multi_label,
    regression,
    single_label,
)
from everest.metrics.intervals import Metrics, bootstrap
from everest.metrics.names import METRICS
from everest.metrics.predicted import HeadPredictions, Predictions, label_array
from everest.system.files import write_table

OVER_CLASSES: Final = ("mean_class_accuracy", "macro_f1", "map")  # means over classes
# Our choice: with fewer videos of a class than this, their number varies much from draw to draw, and many
# draws have none of them. Means over classes then have no interval.
FEW_OF_CLASS: Final = 5

Values = dict[str, Any]
Columns = Sequence[tuple[str, Sequence[str]]]  # their names, and a text for each video


class TaskFunctions(NamedTuple):
    """The functions of the outputs of a head that differ from task to task."""

    metrics: Callable[[HeadPredictions], Metrics]
    loss: Callable[[HeadPredictions], float]  # of the mean outputs
    columns: Callable[[HeadPredictions, Classes], Columns]  # of a file of predictions


def _cross_entropy(right: NDArray[np.floating[Any]]) -> float:
    """The mean over probabilities of the right answers."""
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def _smooth_l1(errors: NDArray[np.floating[Any]]) -> float:
    errors = np.abs(errors)
    return float(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean())


def _columns_of_one(head: HeadPredictions, classes: Classes) -> Columns:
    best = head.means.argmax(axis=1)  # (V,)
    return [
        ("label", [classes.name(label) for label in head.labels.tolist()]),
        ("predicted", [classes.name(number) for number in best.tolist()]),
        ("probability", [f"{probability:.6f}" for probability in head.means.max(axis=1)]),
        ("correct", [str(int(is_right)) for is_right in best == head.labels]),
    ]


def _columns_of_several(head: HeadPredictions, classes: Classes) -> Columns:
    def named(flags: NDArray[np.bool_]) -> list[str]:
        return [JOINED_BY.join(classes.name(int(c)) for c in row.nonzero()[0]) for row in flags]

    return [
        ("label", named(head.labels)),
        ("predicted", named(head.chosen)),
        ("correct", [str(int(is_right)) for is_right in (head.labels == head.chosen).all(axis=1)]),
        *((f"probability.{classes.name(c)}", [f"{x:.6f}" for x in of]) for c, of in enumerate(head.means.T)),
    ]


def _columns_of_numbers(head: HeadPredictions, _: Classes) -> Columns:
    answers = head.means[:, 0]  # (V,)
    return [
        ("label", [f"{label:.15g}" for label in head.labels]),
        ("predicted", [f"{answer:.7g}" for answer in answers]),
        ("error", [f"{error:.6g}" for error in answers - head.labels]),
    ]


TASKS: Final[Mapping[str, TaskFunctions]] = {
    "single-label": TaskFunctions(
        metrics=single_label,
        loss=lambda head: _cross_entropy(head.means[np.arange(len(head.labels)), head.labels]),
        columns=_columns_of_one,
    ),
    MULTI_LABEL: TaskFunctions(
        metrics=multi_label,
        loss=lambda head: _cross_entropy(np.where(head.labels, head.means, 1 - head.means)),
        columns=_columns_of_several,
    ),
    "regression": TaskFunctions(
        metrics=regression,
        loss=lambda head: _smooth_l1((head.means[:, 0] - head.labels) / head.head.std),
        columns=_columns_of_numbers,
    ),
}


def measure(predictions: Predictions, *, intervals: bool = False) -> Values:
    """Return the metrics over the readable videos.

    The metrics of several heads are under `heads`, by name; if all are single-label, `action_top1` counts
    the videos with all of them right.

    Args:
        intervals: adds `intervals`, the 95 % interval (low, high) of each measured value, by its name.
    """
    by_head = predictions.by_head()
    groups = (predictions.groups or range(len(predictions.videos))) if intervals else None
    measured = {name: _measure_head(head, groups) for name, head in by_head.items()}
    if "" in measured:
        return measured[""]
    result: Values = {"heads": measured}
    if any(head.task != "single-label" for head in predictions.heads):
        return result
    right = np.all([head.correct for head in by_head.values()], axis=0)  # (V,)
    of_action = _measured(
        lambda weights: {"action_top1": weights @ right / weights.sum()}, len(right), groups
    )
    return {**result, **of_action, "chance_action_top1": round(chance_top1(predictions.heads), 4)}


def _measure_head(head: HeadPredictions, groups: Sequence[Hashable] | None) -> Values:
    """The metrics of a head, the values of chance, and with groups of videos the intervals."""
    shares, metrics = head.head.task != "regression", TASKS[head.head.task].metrics(head)
    result = _measured(metrics, len(head.labels), groups, shares=shares)
    result |= {name: _rounded(value, shares) for name, value in chances(head.head, head.labels).items()}
    if shares and groups is not None:
        support = head.class_flags()[0].sum(axis=0)  # (C,)
        if support[support > 0].min(initial=FEW_OF_CLASS) < FEW_OF_CLASS:
            few = {name: [None, None] for name in OVER_CLASSES if name in result["intervals"]}
            result["intervals"] |= few
    return result


def _measured(
    metrics: Metrics, videos: int, groups: Sequence[Hashable] | None, *, shares: bool = True
) -> Values:
    """Metrics of videos as JSON values, with their intervals if there are groups of the videos."""
    result: Values = {name: _rounded(x, shares) for name, x in metrics(np.ones(videos)).items()}
    if groups is not None:
        ends = bootstrap(metrics, groups, shares=shares)
        result["intervals"] = {name: [_rounded(end, shares) for end in ends[name]] for name in ends}
    return result


def _rounded(value: float, is_share: bool) -> float | None:
    """Percent with four digits after the point, or a number with six digits; None instead of nan."""
    if math.isnan(value):
        return None
    return round(100 * float(value), 4) if is_share else float(f"{value:.6g}")


def mean_loss(predictions: Predictions) -> float:
    """The loss of the mean output of a video, over all videos and heads, without smoothing or weights."""
    heads = predictions.by_head().values()
    return float(np.mean([TASKS[head.head.task].loss(head) for head in heads]))


def chance_top1(heads: Heads) -> float:
    """The top-1 accuracy of guessing, in percent; of several heads, that all are right."""
    return 100 / math.prod(head.outputs for head in heads)


def chance_of(metric: str, heads: Heads, labels: Sequence[tuple[Label, ...]]) -> float | None:
    """The value of a metric for a model that has learned nothing about these videos; None if it has none.

    Args:
        metric: a name of METRICS; `majority_top1` is that of always predicting the most frequent class.
    """
    if metric in ("top1", "mean_class_accuracy"):
        return chance_top1(heads)
    head, *others = heads
    if others:
        return None
    found = chances(head, label_array([row[0] for row in labels], head))
    value = found.get(metric if metric in found else METRICS[metric].chance or "")
    return None if value is None else _rounded(value, head.task != "regression")


def thresholds_of(predictions: Predictions) -> dict[str, list[float]]:
    """The thresholds of the classes of each multi-label head, by its name."""
    heads = predictions.by_head().items()
    return {
        name: choose_thresholds(head.means, head.labels)
        for name, head in heads
        if head.head.task == MULTI_LABEL
    }


def per_class(head: HeadPredictions, names: Sequence[str]) -> list[Values]:
    """Return `name`, `videos`, `precision`, `recall`, `f1` and `ap` of each class, in percent.

    Precision is 0 of a class that is never predicted. `ap`, the average precision, is None of a class without
    a video. Of several classes per video also the `threshold`, the least probability of a predicted class.
    """
    truth, chosen = head.class_flags()  # (V, C) each
    videos, predicted, right = truth.sum(axis=0), chosen.sum(axis=0), (truth & chosen).sum(axis=0)  # (C,)
    scores = {
        "precision": right / np.maximum(predicted, 1),
        "recall": right / np.maximum(videos, 1),
        "f1": 2 * right / np.maximum(videos + predicted, 1),
        "ap": average_precisions(truth, head.means)(np.ones(len(truth))),
    }
    if head.head.task == MULTI_LABEL:
        scores["threshold"] = np.array(head.head.thresholds)
    return [
        {"name": name, "videos": int(videos[i])}
        | {score: _rounded(values[i], is_share=True) for score, values in scores.items()}
        for i, name in enumerate(names)
    ]


def write_predictions(path: Path, predictions: Predictions, classes: Classes) -> None:
    """Write a CSV row per video; the columns of each of several heads end in its name.

    A single-label head has `label`, `predicted`, `probability` and `correct`; a multi-label head the same
    without a probability, and `probability.CLASS` of each class; a number `label`, `predicted` and `error`.
    """
    columns: list[tuple[str, Sequence[str]]] = [("video", predictions.videos)]
    for name, head in predictions.by_head().items():
        of_head = TASKS[head.head.task].columns(head, classes)
        columns += [(f"{column}.{name}" if name else column, texts) for column, texts in of_head]
    rows = zip(*(texts for _, texts in columns), strict=True)
    write_table(path, [[column for column, _ in columns], *rows])
