"""The metrics of one head, for each task, with their intervals.

All are scikit-learn's. Metrics of classes are in percent, errors of numbers in the unit of the labels.

V videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

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

from everest.inference.calibrate import calibration_errors
from everest.inference.intervals import bootstrap, bootstrap_intervals
from everest.inference.predicted import HeadPredictions, in_top

Values = dict[str, Any]

NONE: Final[Any] = 0.0  # precision or recall of no video; scikit-learn's types know its default only
EACH: Final[Any] = None  # no average: a value for each class


def single_label(head: HeadPredictions, groups: Sequence[Any] | None) -> Values:
    """top1, top5: of the mean probability over a video's views. clip_top1: of single views.

    mean_class_accuracy, macro_f1: over the classes that occur. majority_top1: of always answering the most
    frequent class. chance_top1, chance_top5: of guessing. ece: see everest.inference.calibrate.
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
        found = bootstrap_intervals(outcomes, head.correct, labels, groups=groups)
        f1 = _intervals(
            lambda weights: {"macro_f1": _weighted_f1(labels, predicted, classes, weights)}, groups
        )
        result["intervals"] = found | f1
    return result


def _weighted_f1(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, weights: NDArray[np.float64]
) -> float:
    """macro_f1 of weighted videos, as scikit-learn's, without its checks in each of thousands of draws."""
    support = np.bincount(labels, weights, classes)
    answered = np.bincount(predicted, weights, classes)
    right = np.bincount(labels, weights * (labels == predicted), classes)
    used = support > 0
    return float((2 * right[used] / (support + answered)[used]).mean())


def multi_label(head: HeadPredictions, groups: Sequence[Any] | None) -> Values:
    """map: mean average precision over the classes with a video. chance_map: of a random order.

    micro_f1, macro_f1, exact_match: of the classes above their thresholds; macro_f1 over classes with a
    video. ece: see everest.inference.calibrate.
    """
    labels, chosen, used = head.labels, head.chosen, head.labels.any(axis=0)
    result: Values = {
        "map": None,
        "micro_f1": percent_of(f1_score(labels.ravel(), chosen.ravel(), zero_division=NONE)),
        "macro_f1": None,
        "exact_match": percent_of((labels == chosen).all(axis=1).mean()),
        "chance_map": prevalence(labels),
        **calibration_errors(head),
    }
    if used.any():
        # By class: scikit-learn reads a single column as two classes.
        of_classes = zip(labels.T[used], chosen.T[used], strict=True)
        f1 = [f1_score(truth, predicted, zero_division=NONE) for truth, predicted in of_classes]
        result["map"] = percent_of(average_precision_score(labels[:, used], head.means[:, used]))
        result["macro_f1"] = percent_of(np.mean(f1))
    if groups is not None:
        result["intervals"] = _intervals(weighted_multi_label(head), groups)
    return result


def weighted_multi_label(head: HeadPredictions) -> Callable[[NDArray[np.float64]], dict[str, float]]:
    """Return a function from weights of the videos (V,) to their multi-label metrics, as scikit-learn's.

    The videos are sorted once instead of in each of thousands of draws.
    """
    labels, chosen = head.labels.astype(np.float64), head.chosen.astype(np.float64)  # (V, C)
    right = (head.labels == head.chosen).all(axis=1)  # (V,)
    order = np.argsort(-head.means, axis=0, kind="stable")  # (V, C)
    ranked = np.take_along_axis(labels, order, axis=0)
    scores = np.take_along_axis(head.means, order, axis=0)
    # (V, C) the last place with the score of each place: equal scores have one precision.
    last = np.stack([np.searchsorted(-column, -column, side="right") - 1 for column in scores.T], axis=1)

    def metrics(weights: NDArray[np.float64]) -> dict[str, float]:
        drawn = weights[order]  # (V, C)
        found = (drawn * ranked).cumsum(axis=0)
        precision = found / np.maximum(drawn.cumsum(axis=0), 1e-12)
        at_place = np.take_along_axis(precision, last, axis=0)
        support = found[-1]  # (C,)
        used = support > 0
        with np.errstate(invalid="ignore"):
            average = (drawn * ranked * at_place).sum(axis=0) / support
        both, answered = weights @ (labels * chosen), weights @ chosen  # (C,)
        f1 = 2 * both / np.maximum(answered + support, 1e-12)
        return {
            "map": float(average[used].mean()) if used.any() else math.nan,
            "micro_f1": float(2 * both.sum() / max((answered + support).sum(), 1e-12)),
            "macro_f1": float(f1[used].mean()) if used.any() else math.nan,
            "exact_match": float(weights @ right / weights.sum()),
        }

    return metrics


def regression(head: HeadPredictions, groups: Sequence[Any] | None) -> Values:
    """mae, rmse: in the unit of the labels. r2: share of the variance. spearman: of the ranks.

    chance_mae: of always answering the mean of the training set.
    """
    labels, predicted = head.labels, head.means[:, 0].astype(np.float64)

    def of(weights: NDArray[np.float64] | None) -> dict[str, float]:
        every = (
            np.arange(len(labels))
            if weights is None
            else np.repeat(np.arange(len(labels)), weights.astype(int))
        )
        truth, answer = labels[every], predicted[every]
        varies = len(truth) > 1 and np.ptp(truth) > 0
        return {
            "mae": float(mean_absolute_error(truth, answer)),
            "rmse": float(root_mean_squared_error(truth, answer)),
            "r2": float(r2_score(truth, answer)) if varies else math.nan,
            "spearman": float(cast("Any", spearmanr(truth, answer)).statistic)
            if varies and np.ptp(answer) > 0
            else math.nan,
        }

    result: Values = {name: number(value) for name, value in of(None).items()}
    result["chance_mae"] = number(float(np.abs(labels - head.head.mean).mean()))
    if groups is not None:
        result["intervals"] = _intervals(of, groups, percent=False)
    return result


def prevalence(labels: NDArray[np.bool_]) -> float:
    """The mean average precision of a random order, in percent: the mean share of the videos of a class."""
    used = labels.any(axis=0)
    return percent_of(labels[:, used].mean()) if used.any() else 0.0


def _intervals(
    statistics: Callable[[NDArray[np.float64]], dict[str, float]],
    groups: Sequence[Any],
    *,
    percent: bool = True,
) -> dict[str, list[float | None]]:
    """The 95 % intervals of statistics of weighted videos."""
    names = list(statistics(np.ones(len(groups))))
    low, high = bootstrap(lambda weights: np.array(list(statistics(weights).values())), groups)
    shown = percent_of if percent else number
    return {name: [shown(low[i]), shown(high[i])] for i, name in enumerate(names)}


def percent_of(share: Any) -> float:
    return round(100 * float(share), 4)


def number(value: float) -> float | None:
    """Six digits; None instead of NaN, which JSON does not have."""
    return None if math.isnan(value) else float(f"{value:.6g}")
