"""The probes of pooled features: nearest neighbors, and a linear model for each task.

All take features (N, D) of the training videos, their labels and features (M, D) of the test videos. Labels
are (N,) classes, (N, C) whether a video has a class, or (N,) numbers, by the task of the head.

N training videos, M test videos, D width, C outputs.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from everest.config.heads import Head

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]  # (N,)
Mask = NDArray[np.bool_]  # (N,)
Output = tuple[Floats, dict[str, Any]]  # (M, C) answers about the test videos; settings for the report

NEIGHBORS: Final = 20  # DINO (Caron et al. 2021), appendix F.1: consistently the best of 10, 20, 100, 200
TEMPERATURE: Final = 0.07  # DINO, appendix F.1
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice of sklearn's C = 1 / weight decay
USUAL: Final = 1.0  # sklearn's strength, where nothing can be held out
HELD_OUT: Final = 5  # our choice: one in five videos of each class selects the strength
MOST_STEPS: Final = 2000  # of L-BFGS


def nearest_neighbors(
    features: Floats, labels: NDArray[Any], test: Floats, head: Head, *, neighbors: int = NEIGHBORS
) -> Output:
    """Let the nearest training videos vote, by cosine, with weight exp(similarity / temperature) as in DINO.

    Of several classes and of numbers the answer is the weighted mean of their labels.
    """
    search = NearestNeighbors(n_neighbors=min(neighbors, len(features)), metric="cosine").fit(features)
    distances, nearest = search.kneighbors(test)  # (M, neighbors) each
    weights = np.exp((1 - distances) / TEMPERATURE)
    settings = {"neighbours": nearest.shape[1], "temperature": TEMPERATURE}
    if head.task == "single-label":
        votes = np.zeros((len(test), head.outputs), dtype=np.float32)
        np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
        return votes / votes.sum(axis=1, keepdims=True), settings
    values = labels.reshape(len(labels), -1)[nearest]  # (M, neighbors, C)
    means = (weights[..., None] * values).sum(axis=1) / weights.sum(axis=1, keepdims=True)
    return means.astype(np.float32), settings


def held_out(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """Return (N,): a fifth of each class, at least one video, and none of a class with a single video."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        videos = rng.permutation(np.flatnonzero(labels == label))
        if len(videos) > 1:
            held[videos[: max(len(videos) // HELD_OUT, 1)]] = True
    return held


def linear(
    features: Floats, labels: Labels, test: Floats, head: Head, *, seed: int, chosen_on: Mask | None = None
) -> Output:
    """Fit a logistic regression of standardized features.

    Its strength is the best one on a held-out part of the training set, the smallest of equal ones. The
    regression is then fitted on the whole training set.

    Args:
        seed: of the draw of the held-out part.
        chosen_on: the held-out part, (N,); None: it is drawn.
    """

    def fit(rows: NDArray[np.bool_], strength: float) -> tuple[Pipeline, bool]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_STEPS))
        return model, _converges(model, features[rows], labels[rows])

    held = held_out(labels, seed) if chosen_on is None else chosen_on
    best = USUAL
    if held.any():
        best = max(STRENGTHS, key=lambda c: fit(~held, c)[0].score(features[held], labels[held]))
    model, converged = fit(np.ones_like(held), best)
    probabilities = np.zeros((len(test), head.outputs), dtype=np.float32)
    probabilities[:, np.unique(labels)] = model.predict_proba(test)  # a class may have no training video
    return probabilities, {"strength": best, "held_out": int(held.sum()), "converged": converged}


def one_vs_rest(
    features: Floats,
    labels: NDArray[np.bool_],
    test: Floats,
    head: Head,
    *,
    seed: int,
    chosen_on: Mask | None = None,
) -> Output:
    """Fit a logistic regression of standardized features for each of several classes, see `linear`.

    One strength for all classes: the one with the best mean average precision. A class that all training
    videos have, or none, has the probability 1 or 0.
    """

    def fit(rows: NDArray[np.bool_], others: Floats, strength: float) -> tuple[Floats, bool]:
        scaler = StandardScaler().fit(features[rows])
        inputs, result = scaler.transform(features[rows]), np.zeros((len(others), head.outputs), np.float32)
        converged = True
        for number, column in enumerate(labels[rows].T):
            if column.all() or not column.any():
                result[:, number] = column[0]
                continue
            model = LogisticRegression(C=strength, max_iter=MOST_STEPS)
            converged &= _converges(model, inputs, column)
            result[:, number] = model.predict_proba(scaler.transform(others))[:, 1]
        return result, converged

    def precision(strength: float) -> float:
        found, _ = fit(~held, features[held], strength)
        each = [average_precision_score(labels[held][:, c], found[:, c]) for c in np.flatnonzero(used)]
        return float(np.mean(each))

    held = held_out(np.zeros(len(features), dtype=np.int64), seed) if chosen_on is None else chosen_on
    used = labels[held].any(axis=0)
    best = max(STRENGTHS, key=precision) if used.any() else USUAL
    probabilities, converged = fit(np.ones_like(held), test, best)
    return probabilities, {"strength": best, "held_out": int(held.sum()), "converged": converged}


def ridge(
    features: Floats,
    numbers: NDArray[np.float64],
    test: Floats,
    head: Head,
    *,
    seed: int,
    chosen_on: Mask | None = None,
) -> Output:
    """Fit a ridge regression of standardized features, with the weight decay 1 / strength; see `linear`.

    Its strength has the least mean absolute error.
    """

    def fit(rows: NDArray[np.bool_], others: Floats, strength: float) -> Floats:
        scaler = StandardScaler().fit(features[rows])
        model = Ridge(alpha=1 / strength).fit(scaler.transform(features[rows]), numbers[rows])
        return np.asarray(model.predict(scaler.transform(others)), dtype=np.float32)

    def error(strength: float) -> float:
        return float(np.abs(fit(~held, features[held], strength) - numbers[held]).mean())

    held = held_out(np.zeros(len(features), dtype=np.int64), seed) if chosen_on is None else chosen_on
    best = min(STRENGTHS, key=error) if held.any() else USUAL
    found = fit(np.ones_like(held), test, best)
    return found.reshape(-1, head.outputs), {"strength": best, "held_out": int(held.sum())}


def _converges(model: Pipeline | LogisticRegression, features: Any, labels: NDArray[Any]) -> bool:
    """Fit a model; returns whether it has converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    return not caught
