"""Calibration of a classifier: the temperature of its probabilities, their error, thresholds of classes.

The temperature is chosen on validation videos, stored with the weights, and applied to answers.

An evaluation has the mean probability over the views of a video. The logits here are therefore the log of
that mean (single-label; the softmax ignores a constant) or its log odds (multi-label), not the output of the
head.

C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from torch import Tensor

from everest.config.heads import MULTI_LABEL, THRESHOLD, Calibration, Heads
from everest.errors import CheckpointError
from everest.metrics.predicted import HeadPredictions, Predictions

ClassTask = Literal["single-label", "multi-label"]  # one class of a video, or any number of them
Probabilities = NDArray[np.floating[Any]]  # (videos, C)

BINS: Final = 15  # Guo et al. 2017, table 1
LOWEST_TEMPERATURE: Final = 0.05  # our choice
HIGHEST_TEMPERATURE: Final = 20.0  # our choice
USUAL: Final = math.log(2)  # our choice: the standard deviation of ln T before any video is seen
EXACTNESS: Final = 1e-6  # our choice: of the logarithm of the temperature
# The float32 numbers next to 0 and 1, which are no logits.
SMALLEST: Final = float(np.finfo(np.float32).tiny)
LARGEST: Final = 1 - float(np.finfo(np.float32).epsneg)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bins:
    """Predictions by their confidence, in bins of equal width from 0 to 1; an empty bin has the means 0."""

    count: NDArray[np.int64]  # (bins,)
    confidence: NDArray[np.float64]  # (bins,) mean
    accuracy: NDArray[np.float64]  # (bins,) share of correct predictions
    pairs: bool  # of a video and a class are counted (multi-label), not videos

    @property
    def error(self) -> float:
        """The expected calibration error, a share from 0 to 1 (Guo et al. 2017, equation 3)."""
        return float(self.count @ np.abs(self.accuracy - self.confidence) / self.count.sum())


def fit_temperature(probabilities: Probabilities, labels: NDArray[Any], task: ClassTask) -> float:
    """Return the temperature that minimizes the cross-entropy of logits / T (Guo et al. 2017, section 4.2).

    One temperature for all classes; the order of a video's classes does not change. T is 1 if no other one is
    better.

    With few videos T would follow their noise, and would go to 0 if each label is the most probable class. So
    a term is added (ours): that of a normal distribution of ln T around 0, as strong as one video. With
    hundreds of videos it changes nothing.

    Args:
        probabilities: (videos, C), of videos that the model was not trained on.
        labels: (videos,) class of each video, or (videos, C) whether it has the class (multi-label).
    """
    logits = _logits(probabilities, task)  # (videos, C)

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        if task == "multi-label":  # log(1 + exp(-z)) of a pair with the label, log(1 + exp(z)) without it
            cross_entropy = np.logaddexp(0, np.where(labels, -scaled, scaled)).mean()
        else:
            cross_entropy = -log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean()
        return float(cross_entropy) + (math.log(temperature) / USUAL) ** 2 / (2 * len(labels))

    found: Any = minimize_scalar(
        lambda log_temperature: loss(math.exp(log_temperature)),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": EXACTNESS},
    )
    # The search never tries its bounds; of equal losses the first one is taken.
    return min(1.0, math.exp(found.x), LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, key=loss)


def apply_temperature(
    probabilities: Probabilities, temperature: float, task: ClassTask
) -> NDArray[np.float64]:
    """Return the probabilities (videos, C) of logits / T; T = 1 returns its input up to rounding."""
    scaled = _logits(probabilities, task) / temperature  # (videos, C)
    return expit(scaled) if task == "multi-label" else softmax(scaled, axis=1)


def expected_calibration_error(
    probabilities: Probabilities, labels: NDArray[Any], *, bins: int = BINS
) -> tuple[float, Bins]:
    """Return the mean distance of confidence and accuracy, a share from 0 to 1, and its bins.

    Single-label: the confidence of a video is the probability of its most probable class, and its prediction
    is correct if this class is the label (Guo et al. 2017, equation 3). Multi-label: each pair of a video and
    a class counts, with the probability of the class, and is correct if the video has the class.

    Args:
        probabilities: (videos, C).
        labels: (videos,) class of each video, or (videos, C) whether it has the class (multi-label).
    """
    pairs = labels.ndim == 2
    if pairs:
        confidence, correct = probabilities.ravel(), labels.ravel()  # (videos * C,) each
    else:
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels  # (videos,)
    confidence = confidence.astype(np.float64)
    ends = np.arange(1, bins) / bins  # (bins - 1,) a bin includes its end, not its start
    places = np.searchsorted(ends, confidence, side="left")
    count = np.bincount(places, minlength=bins)  # (bins,)
    sums = [np.bincount(places, weights=values, minlength=bins) for values in (confidence, correct)]
    means = [total / np.maximum(count, 1) for total in sums]
    found = Bins(count=count, confidence=means[0], accuracy=means[1], pairs=pairs)
    return found.error, found


def choose_thresholds(probabilities: Probabilities, labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the threshold of each class, (C,), with the highest F1; scores from it on are positive.

    The candidates are the middle between 0 and the lowest score of the class, and the middles between
    neighboring scores; of equal F1 the nearest to 0.5 is chosen. A class without a positive video keeps 0.5.
    The threshold of a class with few positive videos depends on these videos: others may have another.

    Args:
        probabilities: (videos, C), of videos that the model was not trained on.
        labels: (videos, C) whether a video has a class.
    """
    thresholds = np.full(labels.shape[1], THRESHOLD)
    for number in np.flatnonzero(labels.any(axis=0)):
        positive = labels[:, number].astype(np.float64)  # (videos,)
        scores, places = np.unique(probabilities[:, number].astype(np.float64), return_inverse=True)
        predicted = _from_here_on(np.bincount(places))  # (scores,) videos with this score or a higher one
        right = _from_here_on(np.bincount(places, weights=positive))
        f1 = 2 * right / (predicted + positive.sum())
        lower = np.concatenate([[0.0], scores[:-1]])
        middles = (lower + scores) / 2
        middles = np.where(middles > lower, middles, scores)  # no float is between two neighboring ones
        best = middles[f1 == f1.max()]
        thresholds[number] = best[np.abs(best - THRESHOLD).argmin()]
    return thresholds


def _from_here_on(values: NDArray[Any]) -> NDArray[Any]:
    return values[::-1].cumsum()[::-1]


def _logits(probabilities: Probabilities, task: ClassTask) -> NDArray[np.float64]:
    inside = np.clip(probabilities.astype(np.float64), SMALLEST, LARGEST)
    return logit(inside) if task == "multi-label" else np.log(inside)


def calibrate(predictions: Predictions) -> dict[str, Calibration]:
    """The temperature of each head of classes, and the thresholds of multi-label classes, by its name.

    The thresholds are of the probabilities before the temperature, which does not change their order.
    """
    chosen = {}
    for name, head in predictions.by_head().items():
        if head.head.task == "regression":
            continue
        thresholds = ()
        if head.head.task == MULTI_LABEL:
            thresholds = tuple(choose_thresholds(head.means, head.labels).tolist())
        temperature = fit_temperature(head.means, head.labels, head.head.task)
        chosen[name] = Calibration(temperature=temperature, thresholds=thresholds)
    return chosen


def calibration_errors(head: HeadPredictions) -> dict[str, float]:
    """`ece` in percent; with a temperature in the weights also `ece_calibrated` and `temperature`."""
    assert head.head.task != "regression"
    result = {"ece": round(100 * expected_calibration_error(head.means, head.labels)[0], 4)}
    calibration = head.head.calibration
    if calibration is None:
        return result
    after = apply_temperature(head.means, calibration.temperature, head.head.task)
    error, _ = expected_calibration_error(after, head.labels)
    return result | {
        "ece_calibrated": round(100 * error, 4),
        "temperature": round(calibration.temperature, 4),
    }


def calibrate_answers(means: Tensor, heads: Heads) -> Tensor:
    """Apply the temperature of each head to mean answers (…, outputs); numbers stay as they are."""
    parts = list(means.split([head.outputs for head in heads], dim=-1))
    for i, (part, head) in enumerate(zip(parts, heads, strict=True)):
        if head.task != "regression" and head.calibration is not None:
            flat = part.reshape(-1, head.outputs).numpy()  # (N, outputs)
            scaled = apply_temperature(flat, head.calibration.temperature, head.task)
            parts[i] = torch.from_numpy(scaled).to(part.dtype).view_as(part)
    return torch.cat(parts, dim=-1)


def calibrated_heads(heads: Heads, *, source: str) -> Heads:
    """The heads with the thresholds of calibrated probabilities, which predict the same classes."""
    if all(head.calibration is None for head in heads):
        raise CheckpointError(
            f"{source}: has no temperature for --calibrated; fine-tune with data.val, which chooses one for "
            "the best weights"
        )
    calibrated = []
    for head in heads:
        if head.calibration is not None and head.task == MULTI_LABEL:
            thresholds = np.array([head.thresholds], dtype=np.float64)
            scaled = apply_temperature(thresholds, head.calibration.temperature, MULTI_LABEL)[0]
            head = replace(head, calibration=replace(head.calibration, thresholds=tuple(scaled.tolist())))
        calibrated.append(head)
    return tuple(calibrated)
