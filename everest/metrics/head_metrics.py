"""The metrics of one head, for each task, with their intervals.

All are scikit-learn's. Metrics of classes are in percent, errors of numbers in the unit of the labels.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    recall_score,
    root_mean_squared_error,
)

from everest.metrics.calibration import calibration_errors
from everest.metrics.intervals import FEW_OF_CLASS, bootstrap, bootstrap_intervals
from everest.metrics.predicted import HeadPredictions, in_top
from everest.metrics.weighted import VideoWeights, average_precisions, rank_correlation, share_of_variance

Values = dict[str, Any]

OVER_CLASSES: Final = ("mean_class_accuracy", "macro_f1", "map")  # means over classes
NONE: Final[Any] = 0.0  # precision or recall of no video; scikit-learn's types know its default only


def single_label(head: HeadPredictions, groups: Sequence[Any] | None) -> Values:
    """top1, top5: of the mean probability over a video's views. clip_top1: of single views.

    mean_class_accuracy, macro_f1: over the classes that occur. majority_top1: of always answering the most
    frequent class. chance_top1, chance_top5: of guessing. ece: see everest.metrics.calibration.
    """
    labels, (_, views, classes) = head.labels, head.outputs.shape
    single = head.outputs.reshape(-1, classes)  # (V * views, C)
    outcomes = {  # (V,) each
        "top1": head.correct,
        "top5": in_top(head.means, labels, 5),
        "clip_top1": in_top(single, np.repeat(labels, views), 1).reshape(-1, views).mean(axis=1),
    }
    predicted, used = head.means.argmax(axis=1), np.unique(labels)
    shares = {
        "top1": outcomes["top1"].mean(),
        "top5": outcomes["top5"].mean(),
        "mean_class_accuracy": recall_score(labels, predicted, labels=used, average="macro"),
        "macro_f1": f1_score(labels, predicted, labels=used, average="macro", zero_division=NONE),
        "clip_top1": outcomes["clip_top1"].mean(),
        "majority_top1": np.bincount(labels).max() / len(labels),
        "chance_top1": 1 / classes,
        "chance_top5": min(5, classes) / classes,
    }
    result: Values = {name: percent_of(share) for name, share in shares.items()} | calibration_errors(head)
    if groups is not None:
        # Not by scikit-learn, whose checks take long in each draw.
        def macro_f1(weights: VideoWeights) -> dict[str, float]:
            support = np.bincount(labels, weights, classes)
            answered = np.bincount(predicted, weights, classes)
            right = np.bincount(labels, weights * (labels == predicted), classes)
            f1 = 2 * right[used] / (support + answered)[used] if support[used].all() else np.array(math.nan)
            return {"macro_f1": float(f1.mean())}

        found = bootstrap_intervals(outcomes, head.correct, labels, groups=groups)
        found |= _intervals(macro_f1, groups)
        result["intervals"] = _of_enough(found, labels[:, None] == used)
    return result


def multi_label(head: HeadPredictions, groups: Sequence[Any] | None) -> Values:
    """map: mean average precision over the classes with a video. chance_map: of a random order.

    micro_f1, macro_f1, exact_match: of the classes above their thresholds; macro_f1 over classes with a
    video. ece: see everest.metrics.calibration.
    """
    labels, chosen, used = head.labels, head.chosen, head.labels.any(axis=0)
    result: Values = {
        "map": None,
        "micro_f1": percent_of(f1_score(labels.ravel(), chosen.ravel(), zero_division=NONE)),
        "macro_f1": None,
        "exact_match": percent_of((labels == chosen).all(axis=1).mean()),
        "chance_map": map_of_random_order(labels),
        **calibration_errors(head),
    }
    if used.any():
        # By class: scikit-learn reads a single column as two classes.
        of_classes = zip(labels.T[used], chosen.T[used], strict=True)
        f1 = [f1_score(truth, predicted, zero_division=NONE) for truth, predicted in of_classes]
        result["map"] = percent_of(average_precision_score(labels[:, used], head.means[:, used]))
        result["macro_f1"] = percent_of(np.mean(f1))
    if groups is not None:
        right = (labels == chosen).all(axis=1)
        # A share of videos, with its exact bound; each video counts as of one class.
        exact = bootstrap_intervals(
            {"exact_match": right}, right, np.zeros(len(right), np.int64), groups=groups
        )
        found = _intervals(weighted_multi_label(head), groups) | {"exact_match": exact["exact_match"]}
        result["intervals"] = _of_enough(found, labels[:, used])
    return result


def _of_enough(intervals: Values, labels: NDArray[np.bool_]) -> Values:
    """Leave out the ends of means over classes where a class has few videos.

    Args:
        labels: (V, C) whether a video has a class, of the classes that occur.
    """
    if labels.sum(axis=0).min(initial=FEW_OF_CLASS) >= FEW_OF_CLASS:
        return intervals
    return intervals | {name: [None, None] for name in OVER_CLASSES if name in intervals}


def weighted_multi_label(head: HeadPredictions) -> Callable[[VideoWeights], dict[str, float]]:
    """Return a function from weights of the videos (V,) to their multi-label metrics, as scikit-learn's.

    Means over classes are nan if one of the classes that occur has no weight.
    """
    labels, chosen = head.labels.astype(np.float64), head.chosen.astype(np.float64)  # (V, C)
    precisions, used = average_precisions(head.labels, head.means), head.labels.any(axis=0)

    def metrics(weights: VideoWeights) -> dict[str, float]:
        both, support, answered = weights @ (labels * chosen), weights @ labels, weights @ chosen  # (C,)
        f1 = 2 * both / np.maximum(answered + support, 1)
        complete = used.any() and support[used].all()
        return {
            "map": float(precisions(weights)[used].mean()) if complete else math.nan,
            "micro_f1": float(2 * both.sum() / max((answered + support).sum(), 1)),
            "macro_f1": float(f1[used].mean()) if complete else math.nan,
        }

    return metrics


def regression(head: HeadPredictions, groups: Sequence[Any] | None) -> Values:
    """mae, rmse: in the unit of the labels. r2: share of the variance. spearman: of the ranks.

    chance_mae: of the best constant answer.
    """
    truth, answer = head.labels, head.means[:, 0].astype(np.float64)  # (V,)
    varies = np.ptp(truth) > 0
    result: Values = {
        "mae": number(mean_absolute_error(truth, answer)),
        "rmse": number(root_mean_squared_error(truth, answer)),
        "r2": number(r2_score(truth, answer)) if varies else None,
        "spearman": number(spearmanr(truth, answer)[0]) if varies and np.ptp(answer) > 0 else None,
        "chance_mae": mae_of_constant(truth),
    }
    correlation = rank_correlation(truth, answer)

    def drawn(weights: VideoWeights) -> dict[str, float]:
        return {
            "mae": float(np.average(np.abs(answer - truth), weights=weights)),
            "rmse": math.sqrt(np.average((answer - truth) ** 2, weights=weights)),
            "r2": share_of_variance(truth, answer, weights),
            "spearman": correlation(weights),
        }

    if groups is not None:
        result["intervals"] = _intervals(drawn, groups, percent=False)
    return result


def map_of_random_order(labels: NDArray[np.bool_]) -> float:
    """The expected mean average precision of a random order of the videos, in percent; 0 without a class.

    Of a class with p of V videos, the k-th place has a positive video with probability p / V, and then
    1 + (k - 1) (p - 1) / (V - 1) of the first k are positive on average. The mean over k is above p / V, much
    for few positive videos: 26 % for one of twelve.
    """
    videos, positive = len(labels), labels.sum(axis=0)
    positive = positive[positive > 0]  # (C,)
    if not len(positive):
        return 0.0
    harmonic = (1 / np.arange(1, videos + 1)).sum()
    others = (positive - 1) / max(videos - 1, 1)  # the share of the other videos that are positive
    return percent_of(((harmonic + others * (videos - harmonic)) / videos).mean())


def mae_of_constant(truth: NDArray[np.float64]) -> float | None:
    """The mean absolute error of the best constant answer, the median of these videos."""
    return number(np.abs(truth - np.median(truth)).mean())


def _intervals(
    statistics: Callable[[NDArray[np.float64]], dict[str, float]],
    groups: Sequence[Any],
    *,
    percent: bool = True,
) -> dict[str, list[float | None]]:
    """The 95 % intervals of statistics of weighted videos."""
    names = list(statistics(np.ones(len(groups))))
    low, high = bootstrap(lambda weights: np.array(list(statistics(weights).values())), groups)
    return {
        name: [percent_of(end) if percent and not math.isnan(end) else number(end) for end in ends]
        for name, *ends in zip(names, low, high, strict=True)
    }


def percent_of(share: Any) -> float:
    return round(100 * float(share), 4)


def number(value: Any) -> float | None:
    """Six digits; None instead of NaN, which JSON does not have."""
    return None if math.isnan(value) else float(f"{value:.6g}")
