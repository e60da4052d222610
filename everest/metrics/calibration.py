"""Calibration of a classifier: the temperature of its probabilities, their error, thresholds of classes.

An evaluation has the mean probability over the views of a video. The logits here are therefore the log of
that mean (single-label; the softmax ignores a constant) or its log odds (multi-label), not the output of the
head.

C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from everest.config.heads import THRESHOLD

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
        return cross_entropy(temperature) + (math.log(temperature) / USUAL) ** 2 / (2 * len(labels))

    def cross_entropy(temperature: float) -> float:
        scaled = logits / temperature
        if task == "multi-label":  # log(1 + exp(-z)) of a pair with the label, log(1 + exp(z)) without it
            return float(np.logaddexp(0, np.where(labels, -scaled, scaled)).mean())
        return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())

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
