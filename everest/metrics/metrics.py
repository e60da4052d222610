"""The metrics of an evaluation, and its outputs as a file.

Metrics of classes are in percent, errors of numbers in the unit of the labels.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from everest.config.heads import MULTI_LABEL, Heads
from everest.lists.classes import Classes
from everest.lists.labels import JOINED_BY, Label
from everest.metrics.head_metrics import HEAD_METRICS, average_precisions, chances, choose_thresholds
from everest.metrics.intervals import Metrics, bootstrap
from everest.metrics.names import METRICS
from everest.metrics.predicted import HeadPredictions, Predictions, in_top, label_array
from everest.system.files import write_table

OVER_CLASSES: Final = ("mean_class_accuracy", "macro_f1", "map")  # means over classes
# Our choice: with fewer videos of a class than this, their number varies much from draw to draw, and many
# draws have none of them. Means over classes then have no interval.
FEW_OF_CLASS: Final = 5

Values = dict[str, Any]


def measure(predictions: Predictions, *, intervals: bool = False) -> Values:
    """Return the metrics over the readable videos.

    The metrics of several heads are under `heads`, by name; if all are single-label, `action_top1` counts
    the videos with all of them right.

    Args:
        intervals: adds `intervals`, the 95 % interval (low, high) of each measured value, by its name.
    """
    by_head = predictions.by_head()
    groups = (predictions.groups or range(len(predictions.videos))) if intervals else None
    measured = {}
    for name, head in by_head.items():
        shares, metrics = head.head.task != "regression", HEAD_METRICS[head.head.task](head)
        values = _measured(metrics, len(head.labels), groups, shares=shares)
        values |= {key: _rounded(value, shares) for key, value in chances(head.head, head.labels).items()}
        if shares and groups is not None:
            support = head.class_flags()[0].sum(axis=0)  # (C,)
            if support[support > 0].min(initial=FEW_OF_CLASS) < FEW_OF_CLASS:
                few = {key: [None, None] for key in OVER_CLASSES if key in values["intervals"]}
                values["intervals"] |= few
        measured[name] = values
    if "" in measured:
        return measured[""]
    result: Values = {"heads": measured}
    if any(head.task != "single-label" for head in predictions.heads):
        return result
    right = np.all([in_top(head.means, head.labels, 1) for head in by_head.values()], axis=0)  # (V,)
    action = _measured(lambda weights: {"action_top1": weights @ right / weights.sum()}, len(right), groups)
    return {**result, **action, "chance_action_top1": round(chance_top1(predictions.heads), 4)}


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
    losses = []
    for head in predictions.by_head().values():
        means, labels = head.means, head.labels
        if head.head.task == "regression":  # smooth L1
            errors = np.abs((means[:, 0] - labels) / head.head.std)  # (V,)
            losses.append(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean())
            continue
        if head.head.task == MULTI_LABEL:
            right = np.where(labels, means, 1 - means)  # (V, C)
        else:
            right = means[np.arange(len(labels)), labels]  # (V,)
        losses.append(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())
    return float(np.mean([float(loss) for loss in losses]))


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
    values = chances(head, label_array([row[0] for row in labels], head))
    value = values.get(metric if metric in values else METRICS[metric].chance or "")
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
        columns += [(f"{title}.{name}" if name else title, texts) for title, texts in _columns(head, classes)]
    rows = zip(*(texts for _, texts in columns), strict=True)
    write_table(path, [[title for title, _ in columns], *rows])


def _columns(head: HeadPredictions, classes: Classes) -> list[tuple[str, list[str]]]:
    """The titles of the columns of a head, with a text for each video."""
    means, labels = head.means, head.labels
    if head.head.task == "regression":
        return [
            ("label", [f"{label:.15g}" for label in labels]),
            ("predicted", [f"{answer:.7g}" for answer in means[:, 0]]),
            ("error", [f"{error:.6g}" for error in means[:, 0] - labels]),
        ]
    flags = head.class_flags()  # (V, C) each
    named = [
        (title, [JOINED_BY.join(classes.name(int(c)) for c in row.nonzero()[0]) for row in rows])
        for title, rows in zip(("label", "predicted"), flags, strict=True)
    ]
    correct = ("correct", [str(int(is_right)) for is_right in (flags[0] == flags[1]).all(axis=1)])
    if head.head.task == MULTI_LABEL:
        every = [(f"probability.{classes.name(c)}", [f"{x:.6f}" for x in of]) for c, of in enumerate(means.T)]
        return [*named, correct, *every]
    return [*named, ("probability", [f"{x:.6f}" for x in means.max(axis=1)]), correct]
