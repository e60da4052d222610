"""Probes of one feature a video: nearest neighbours, and a linear classifier.

N videos, D width, C classes.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

Features = NDArray[np.float32]  # (N, D)
Labels = NDArray[np.int64]  # (N,)
Probabilities = NDArray[np.float32]  # (N, C)

NEIGHBOURS: Final = 20  # DINO (Caron et al. 2021), appendix F.1: consistently the best of 10, 20, 100, 200
TEMPERATURE: Final = 0.07  # DINO, appendix F.1
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # ours; sklearn's C, the inverse of the weight decay
HELD_OUT: Final = 5  # ours: one in so many of each class chooses the strength
MOST_STEPS: Final = 2000  # of L-BFGS


def nearest_neighbours(
    features: Features, labels: Labels, asked: Features, num_classes: int
) -> tuple[Probabilities, dict[str, Any]]:
    """Votes of the nearest training videos by cosine, weighted by exp(similarity / temperature) as in DINO.

    Returns:
        The probabilities of the `asked` videos, and what they were told by.
    """
    count = min(NEIGHBOURS, len(features))
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(features)
    distances, nearest = search.kneighbors(asked)  # (N, count) each
    votes = np.zeros((len(asked), num_classes), dtype=np.float32)
    np.add.at(votes, (np.arange(len(asked))[:, None], labels[nearest]), np.exp((1 - distances) / TEMPERATURE))
    found = votes / votes.sum(axis=1, keepdims=True)
    return found, {"neighbours": count, "temperature": TEMPERATURE}


def linear(
    features: Features, labels: Labels, asked: Features, num_classes: int, *, seed: int
) -> tuple[Probabilities, dict[str, Any]]:
    """Logistic regression of standardised features.

    Its strength is the one that is best on a part of the training set, the smaller of equals; then it is
    fitted on all of it.

    Args:
        seed: of which part that is.
    Returns:
        The probabilities of the `asked` videos, and what they were told by.
    """
    held = held_out(labels, seed)
    best = 1.0  # sklearn's; where each class has a single video nothing can be held out
    if held.any():
        fits = {c: _fitted(features[~held], labels[~held], c)[0] for c in STRENGTHS}
        best = max(STRENGTHS, key=lambda c: fits[c].score(features[held], labels[held]))
    model, converged = _fitted(features, labels, best)
    found = np.zeros((len(asked), num_classes), dtype=np.float32)
    found[:, np.unique(labels)] = model.predict_proba(asked)  # a class may have no training video
    return found, {"strength": best, "held_out": int(held.sum()), "converged": converged}


def held_out(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """(N,) a fifth of each class, at least one video of it, none where it has no other."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        if len(places) > 1:
            held[places[: max(len(places) // HELD_OUT, 1)]] = True
    return held


def _fitted(features: Features, labels: Labels, strength: float) -> tuple[Pipeline, bool]:
    """The model, and whether it has converged."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_STEPS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    return model, not caught
