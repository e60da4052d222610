"""The metrics of an evaluation: for a head of each task, for all heads, and at chance level.

A metric is a function of the bootstrap counts of the videos, so that its value and its resamples share one
definition. It equals the metric of scikit-learn or scipy for videos repeated by their counts. Class metrics
are fractions; `chances` and `compute_metrics` return percent. Errors of numbers are in the unit
of the labels.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from everest.config.heads import DEFAULT_THRESHOLD, MULTI_LABEL, Heads
from everest.lists.labels import Label
from everest.metrics.intervals import MetricFunction, VideoCounts, bootstrap
from everest.metrics.names import CLASS_MEANS, METRICS
from everest.metrics.predictions import HeadPredictions, Predictions, in_top, label_array, label_probabilities
from everest.system.types import Floats

# Heuristic: if a class has fewer videos than this, their number varies much between resamples, and many
# resamples have none. Means over classes then have no interval.
FEW_OF_CLASS: Final = 5

MetricValues = dict[str, Any]


def single_label_metrics(predictions: HeadPredictions) -> MetricFunction:
    """Return the metric function of a single-label head; its values are fractions.

    top1, top5: accuracy of the mean probability over a video's views. clip_top1: accuracy of single views.
    mean_class_accuracy, macro_f1: means over the classes that occur; nan if a resample lacks one of them.
    """
    labels = predictions.labels
    _, views, classes = predictions.outputs.shape
    single_views = predictions.outputs.reshape(-1, classes)  # (V * views, C)
    predicted = predictions.means.argmax(axis=1)
    occurring_classes = np.unique(labels)
    fractions = {  # (V,) each
        "top1": labels == predicted,
        "top5": in_top(predictions.means, labels, 5),
        "clip_top1": in_top(single_views, np.repeat(labels, views), 1).reshape(-1, views).mean(axis=1),
    }

    def metrics(counts: VideoCounts) -> dict[str, float]:
        support = np.bincount(labels, counts, classes)[occurring_classes]
        chosen = np.bincount(predicted, counts, classes)[occurring_classes]
        right = np.bincount(labels, counts * fractions["top1"], classes)[occurring_classes]
        values = {name: float(counts @ fraction / counts.sum()) for name, fraction in fractions.items()}
        if not support.all():
            return values | {"mean_class_accuracy": math.nan, "macro_f1": math.nan}
        f1 = 2 * right / (support + chosen)
        return values | {"mean_class_accuracy": float((right / support).mean()), "macro_f1": float(f1.mean())}

    return metrics


def multi_label_metrics(predictions: HeadPredictions) -> MetricFunction:
    """Return the metric function of a multi-label head; its values are fractions.

    map: mean average precision. micro_f1, macro_f1, exact_match: for the classes above their thresholds. map
    and macro_f1 are means over the classes that occur; nan if a resample lacks one of them.
    """
    occurring = predictions.labels.any(axis=0)  # (C,)
    exact = (predictions.labels == predictions.is_predicted).all(axis=1)  # (V,)
    labels, chosen = (flags.astype(np.float64) for flags in predictions.class_flags())  # (V, C) each
    is_hit = labels * chosen
    precisions = average_precisions(predictions.labels, predictions.means)

    def metrics(counts: VideoCounts) -> dict[str, float]:
        right, support, predicted = counts @ is_hit, counts @ labels, counts @ chosen  # (C,) each
        complete = occurring.any() and support[occurring].all()
        f1 = 2 * right / np.maximum(support + predicted, 1)
        return {
            "map": float(precisions(counts)[occurring].mean()) if complete else math.nan,
            "micro_f1": float(2 * right.sum() / max((support + predicted).sum(), 1)),
            "macro_f1": float(f1[occurring].mean()) if complete else math.nan,
            "exact_match": float(counts @ exact / counts.sum()),
        }

    return metrics


def regression_metrics(predictions: HeadPredictions) -> MetricFunction:
    """Return the metric function of a head of numbers; errors are in the unit of the labels.

    r2: fraction of the variance explained. spearman: rank correlation. Both are nan if labels or predictions
        are
    constant.
    """
    labels, predicted = predictions.labels, predictions.means[:, 0].astype(np.float64)  # (V,)

    def metrics(counts: VideoCounts) -> dict[str, float]:
        sampled = np.repeat(np.arange(len(labels)), counts.astype(np.int64))
        x, y = labels[sampled], predicted[sampled]
        varies = np.ptp(x) > 0
        ranks = (rankdata(x), rankdata(y)) if varies and np.ptp(y) > 0 else None
        return {
            "mae": float(np.abs(x - y).mean()),
            "rmse": math.sqrt(((x - y) ** 2).mean()),
            "r2": float(1 - ((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum()) if varies else math.nan,
            "spearman": math.nan if ranks is None else float(np.corrcoef(*ranks)[0, 1]),
        }

    return metrics


HEAD_METRICS: Final[dict[str, Callable[[HeadPredictions], MetricFunction]]] = {
    "single-label": single_label_metrics,
    MULTI_LABEL: multi_label_metrics,
    "regression": regression_metrics,
}


def average_precisions(
    labels: NDArray[np.bool_], scores: NDArray[np.floating]
) -> Callable[[VideoCounts], Floats]:
    """Return a function from counts to average precision (C,) for labels and scores (V, C); nan: no video."""
    order = np.argsort(-scores, axis=0, kind="stable")  # (V, C)
    ranked = np.take_along_axis(scores, order, 0)
    positive = np.take_along_axis(labels, order, 0)
    # Videos with equal scores pass a threshold together, so the precision of the last one counts for all.
    ends = np.ones_like(positive)
    ends[:-1] = ranked[1:] != ranked[:-1]
    indices = np.where(ends, np.arange(len(scores))[:, None], len(scores))
    last = np.minimum.accumulate(indices[::-1], axis=0)[::-1]  # (V, C)

    def precisions(counts: VideoCounts) -> Floats:
        ranked_counts = counts[order]  # (V, C)
        right_videos = ranked_counts * positive
        above, right = ranked_counts.cumsum(axis=0), right_videos.cumsum(axis=0)
        precision = np.take_along_axis(right, last, 0) / np.maximum(np.take_along_axis(above, last, 0), 1)
        total = right_videos.sum(axis=0)  # (C,)
        return np.where(total > 0, (right_videos * precision).sum(axis=0) / np.maximum(total, 1), np.nan)

    return precisions


def chances(heads: Heads, labels: Sequence[tuple[Label, ...]]) -> dict[str, float | None]:
    """Return the metrics of a model that has learned nothing about these videos, in their usual units.

    majority_top1: always predicting the most frequent class. chance_top1, chance_top5: guessing; with several
    heads, all must be right. chance_map: a random order. chance_mae: the best constant output, which is the
    median of the labels. Each video has a label per head.
    """
    if len(heads) != 1:
        return {"chance_top1": rounded(1 / math.prod(head.outputs for head in heads), is_fraction=True)}
    (head,) = heads
    truth = label_array([row[0] for row in labels], head)
    if head.task == "regression":
        return {"chance_mae": rounded(np.abs(truth - np.median(truth)).mean(), is_fraction=False)}
    if head.task == MULTI_LABEL:
        # If a class has p of V videos, the k-th place has a positive video with probability p / V, and then
        # 1 + (k - 1) (p - 1) / (V - 1) of the first k are positive on average. The mean over k is above
        # p / V, far above it for few positive videos: 26 % for one of twelve.
        videos = len(truth)
        positive = truth.sum(axis=0)[truth.any(axis=0)]  # videos of each class that occurs
        harmonic = (1 / np.arange(1, videos + 1)).sum()
        others = (positive - 1) / max(videos - 1, 1)  # fraction of positives among the other videos
        precisions = (harmonic + others * (videos - harmonic)) / videos
        fractions = {"chance_map": float(precisions.mean()) if len(positive) else 0.0}
    else:
        fractions = {
            "majority_top1": np.bincount(truth).max() / len(truth),
            "chance_top1": 1 / head.outputs,
            "chance_top5": min(5, head.outputs) / head.outputs,
        }
    return {name: rounded(fraction, is_fraction=True) for name, fraction in fractions.items()}


def find_chance(metric: str, heads: Heads, labels: Sequence[tuple[Label, ...]]) -> float | None:
    """Return the chance level of a metric of METRICS from `chances`; None if it has none."""
    return chances(heads, labels).get(METRICS[metric].chance or metric)


def choose_thresholds(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> list[float]:
    """Return for each class the threshold with the highest F1; scores at or above it are positive.

    The candidates are the midpoint between 0 and the lowest score of the class, and the midpoints between
    neighboring scores; at equal F1, the one nearest to 0.5 is chosen. A class without a positive video keeps
    0.5. With few positive videos, the threshold depends on these videos.

    Args:
        probabilities: (V, C) for videos that the model was not trained on.
        labels: (V, C) whether a video has a class.
    """
    thresholds = [DEFAULT_THRESHOLD] * labels.shape[1]
    for index in np.flatnonzero(labels.any(axis=0)):
        positive = labels[:, index].astype(np.float64)  # (V,)
        scores, positions = np.unique(probabilities[:, index].astype(np.float64), return_inverse=True)
        # Counts over the videos with this or a higher score.
        predicted, right = (
            np.bincount(positions, weights=counted)[::-1].cumsum()[::-1]
            for counted in (np.ones_like(positive), positive)
        )
        f1 = 2 * right / (predicted + positive.sum())
        lower = np.concatenate([[0.0], scores[:-1]])
        midpoints = (lower + scores) / 2
        midpoints = np.where(midpoints > lower, midpoints, scores)  # between adjacent floats there is none
        best = midpoints[f1 == f1.max()]
        thresholds[index] = float(best[np.abs(best - DEFAULT_THRESHOLD).argmin()])
    return thresholds


def compute_metrics(predictions: Predictions, *, intervals: bool = False) -> MetricValues:
    """Compute the metrics over the readable videos.

    The metrics of several heads are under `heads`, by name; if all heads are single-label, `action_top1` is
    the fraction of videos whose heads are all right.

    Args:
        intervals: add `intervals`, the 95 % interval (low, high) of each metric, by name.
    """
    by_head = predictions.by_head()
    groups = (predictions.groups or range(len(predictions.videos))) if intervals else None
    results = {}
    for i, (name, part) in enumerate(by_head.items()):
        is_fraction = part.task != "regression"
        values = _with_intervals(HEAD_METRICS[part.task](part), len(part.labels), groups, is_fraction)
        values |= chances((part.head,), [(row[i],) for row in predictions.labels])
        if is_fraction and groups is not None:
            support = part.class_flags()[0].sum(axis=0)  # (C,)
            if support[support > 0].min(initial=FEW_OF_CLASS) < FEW_OF_CLASS:
                values["intervals"] |= {key: [None, None] for key in CLASS_MEANS if key in values}
        results[name] = values
    if "" in results:
        return results[""]
    result: MetricValues = {"heads": results}
    if any(head.task != "single-label" for head in predictions.heads):
        return result
    right = np.all([in_top(part.means, part.labels, 1) for part in by_head.values()], axis=0)  # (V,)
    result |= _with_intervals(
        lambda counts: {"action_top1": counts @ right / counts.sum()}, len(right), groups
    )
    return result | {"chance_action_top1": chances(predictions.heads, predictions.labels)["chance_top1"]}


def _with_intervals(
    metrics: MetricFunction, videos: int, groups: Sequence[Hashable] | None, is_fraction: bool = True
) -> MetricValues:
    """Return metrics as JSON values, with intervals if the groups of the videos are given."""
    result: MetricValues = {name: rounded(x, is_fraction) for name, x in metrics(np.ones(videos)).items()}
    if groups is not None:
        ends = bootstrap(metrics, groups, fractions=is_fraction)
        result["intervals"] = {name: [rounded(end, is_fraction) for end in ends[name]] for name in ends}
    return result


def rounded(value: float, is_fraction: bool) -> float | None:
    """Round a fraction to percent with four decimals, or a number to six digits; None instead of nan."""
    if math.isnan(value):
        return None
    return round(100 * float(value), 4) if is_fraction else float(f"{value:.6g}")


def mean_loss(predictions: Predictions) -> float:
    """The loss of a video's mean output, averaged over videos and heads, without smoothing or weights."""
    losses = []
    for part in predictions.by_head().values():
        means, labels = part.means, part.labels
        if part.task == "regression":  # smooth L1
            errors = np.abs((means[:, 0] - labels) / part.head.std)  # (V,)
            losses.append(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean())
        else:
            right = label_probabilities(means, labels, part.task)
            losses.append(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())
    return float(np.mean([float(loss) for loss in losses]))
