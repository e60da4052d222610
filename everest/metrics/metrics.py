"""The metrics of an evaluation: accuracies of classes, average precision of several, errors of numbers.

All are scikit-learn's. Metrics of classes are in percent, errors of numbers in the unit of the labels.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.metrics import average_precision_score

from everest.config.heads import MULTI_LABEL, Head, Heads
from everest.lists.labels import Label
from everest.metrics.head_metrics import (
    Values,
    mae_of_constant,
    map_of_random_order,
    multi_label,
    percent_of,
    regression,
    single_label,
)
from everest.metrics.intervals import bootstrap_intervals
from everest.metrics.predicted import HeadPredictions, Predictions, label_array


def measure(predictions: Predictions, *, intervals: bool = False) -> Values:
    """Return the metrics over the readable videos.

    The metrics of several heads are under `heads`, by name; if all are single-label, `action_top1` counts
    the videos with all of them right.

    Args:
        intervals: adds `intervals`, the 95 % interval (low, high) of each measured value, by its name.
    """
    by_head = predictions.by_head()
    groups = predictions.groups or range(len(predictions.videos))
    measured = {
        name: _BY_TASK[head.head.task](head, groups if intervals else None) for name, head in by_head.items()
    }
    if "" in measured:
        return measured[""]
    result: Values = {"heads": measured}
    if any(head.task != "single-label" for head in predictions.heads):
        return result
    right = np.all([head.correct for head in by_head.values()], axis=0)  # (V,)
    chance = round(chance_top1(predictions.heads), 4)
    result |= {"action_top1": percent_of(right.mean()), "chance_action_top1": chance}
    if intervals:
        labels = next(iter(by_head.values())).labels
        found = bootstrap_intervals({"action_top1": right}, right, labels, groups=groups)
        result["intervals"] = {"action_top1": found["action_top1"]}
    return result


def mean_loss(predictions: Predictions) -> float:
    """The loss of the mean answer of a video, over all videos and heads, without smoothing or weights."""
    return float(np.mean([_loss(head) for head in predictions.by_head().values()]))


def _loss(head: HeadPredictions) -> float:
    smallest = np.finfo(np.float32).tiny
    if head.head.task == "regression":
        return _smooth_l1((head.means[:, 0] - head.labels) / head.head.std)
    if head.head.task == MULTI_LABEL:
        right = np.where(head.labels, head.means, 1 - head.means)  # (V, C)
    else:
        right = head.means[np.arange(len(head.labels)), head.labels]  # (V,)
    return float(-np.log(np.maximum(right, smallest)).mean())


def loss_of_guessing(heads: Heads, labels: Sequence[tuple[Label, ...]]) -> float:
    """The loss of answers that do not depend on the video, as `mean_loss`.

    They are the same probability for each single-label class, the share of these videos for each multi-label
    class, and the mean of the training set for a number.
    """
    return float(np.mean([_guessed(head, [row[i] for row in labels]) for i, head in enumerate(heads)]))


def _guessed(head: Head, labels: Sequence[Label]) -> float:
    array = label_array(labels, head)
    if head.task == "regression":
        return _smooth_l1((array - head.mean) / head.std)
    if head.task == MULTI_LABEL:
        return float(entropy([array.mean(axis=0), 1 - array.mean(axis=0)]).mean())
    return math.log(head.outputs)


def _smooth_l1(errors: NDArray[np.floating[Any]]) -> float:
    errors = np.abs(errors)
    return float(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean())


def chance_top1(heads: Heads) -> float:
    """The top-1 accuracy of guessing, in percent; of several heads, that all are right."""
    return 100 / math.prod(head.outputs for head in heads)


_BY_TASK: Final[Mapping[str, Callable[[HeadPredictions, Sequence[Any] | None], Values]]] = {
    "single-label": single_label,
    MULTI_LABEL: multi_label,
    "regression": regression,
}


def per_class(head: HeadPredictions, names: Sequence[str]) -> list[Values]:
    """Return `name`, `videos`, `precision`, `recall`, `f1` and `ap` of each class, in percent.

    Precision is 0 of a class that is never predicted. `ap`, the average precision, is None of a class without
    a video. Of several classes per video also the `threshold`, the least probability of a predicted class.
    """
    several = head.head.task == MULTI_LABEL
    if several:
        truth, chosen = head.labels, head.chosen  # (V, C)
    else:
        classes = np.arange(head.head.outputs)
        truth, chosen = head.labels[:, None] == classes, head.means.argmax(axis=1)[:, None] == classes
    videos, answered, right = truth.sum(axis=0), chosen.sum(axis=0), (truth & chosen).sum(axis=0)  # (C,) each
    precision, recall = right / np.maximum(answered, 1), right / np.maximum(videos, 1)
    f1 = 2 * right / np.maximum(videos + answered, 1)
    return [
        {
            "name": name,
            "videos": int(videos[i]),
            "precision": percent_of(precision[i]),
            "recall": percent_of(recall[i]),
            "f1": percent_of(f1[i]),
            "ap": percent_of(average_precision_score(truth[:, i], head.means[:, i])) if videos[i] else None,
            **({"threshold": percent_of(head.head.thresholds[i])} if several else {}),
        }
        for i, name in enumerate(names)
    ]


def chance_of(metric: str, heads: Heads, labels: Sequence[tuple[Label, ...]]) -> float | None:
    """The value of a metric for a model that has learned nothing about these videos; None if it has none."""
    if metric in ("top1", "mean_class_accuracy"):
        return chance_top1(heads)
    head, *others = heads
    if others:
        return None
    array = label_array([row[0] for row in labels], head)
    if metric == "map":
        return map_of_random_order(array)
    return mae_of_constant(array) if metric == "mae" else None
