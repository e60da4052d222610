"""The probes of several classes per video (multi-label), and of numbers.

N training videos, M test videos, K tokens per video, D width, C outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from everest.config.heads import MULTI_LABEL, Head
from everest.models.classifier import answers
from everest.probes.probe_heads import (
    HELD_OUT,
    MOST_STEPS,
    STRENGTHS,
    Floats,
    Output,
    attentive,
    neighbor_settings,
    neighbors,
)

Flags = NDArray[np.bool_]  # (N, C)
Numbers = NDArray[np.float64]  # (N,)

USUAL: Final = 1.0  # scikit-learn's strength, where nothing can be held out


def mean_of_neighbors(features: Floats, labels: NDArray[Any], test: Floats) -> Output:
    """Return the mean label of the nearest training videos, by their weights as in `nearest_neighbors`.

    Args:
        features, test: (N, D) and (M, D).
        labels: (N, C) whether a video has a class, or (N,) numbers.
    """
    nearest, weights = neighbors(features, test)  # (M, neighbors) each
    values = labels.reshape(len(labels), -1)[nearest]  # (M, neighbors, C)
    means = (weights[..., None] * values).sum(axis=1) / weights.sum(axis=1, keepdims=True)
    return means.astype(np.float32), neighbor_settings(nearest)


def one_vs_rest(features: Floats, labels: Flags, test: Floats, *, seed: int) -> Output:
    """Fit a logistic regression of standardized features for each class.

    One strength for all classes: the one with the best mean average precision on a held-out part of the
    training set, the smallest of equal ones. A class that all training videos have, or none, has the
    probability 1 or 0.

    Args:
        features, test: (N, D) and (M, D).
        seed: of the draw of the held-out part.
    """

    def fit(rows: NDArray[np.bool_], others: Floats, strength: float) -> tuple[Floats, bool]:
        scaler = StandardScaler().fit(features[rows])
        inputs, result = (
            scaler.transform(features[rows]),
            np.zeros((len(others), labels.shape[1]), np.float32),
        )
        converged = True
        for number, column in enumerate(labels[rows].T):
            if column.all() or not column.any():
                result[:, number] = column[0]
                continue
            model = LogisticRegression(C=strength, max_iter=MOST_STEPS)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                model.fit(inputs, column)
            converged &= not caught
            result[:, number] = model.predict_proba(scaler.transform(others))[:, 1]
        return result, converged

    held = _held_out(len(features), seed)
    used = labels[held].any(axis=0)
    best = USUAL
    if used.any():

        def precision(strength: float) -> float:
            found, _ = fit(~held, features[held], strength)
            return float(
                np.mean(
                    [average_precision_score(labels[held][:, c], found[:, c]) for c in np.flatnonzero(used)]
                )
            )

        best = max(STRENGTHS, key=precision)
    probabilities, converged = fit(np.ones(len(features), dtype=bool), test, best)
    return probabilities, {"strength": best, "held_out": int(held.sum()), "converged": converged}


def ridge(features: Floats, numbers: Numbers, test: Floats, *, seed: int) -> Output:
    """Fit a ridge regression of standardized features, with the weight decay 1 / strength.

    Its strength has the least mean absolute error on a held-out part of the training set, the smallest of
    equal ones.

    Args:
        features, test: (N, D) and (M, D).
        seed: of the draw of the held-out part.
    """

    def fit(rows: NDArray[np.bool_], others: Floats, strength: float) -> Floats:
        scaler = StandardScaler().fit(features[rows])
        model = Ridge(alpha=1 / strength).fit(scaler.transform(features[rows]), numbers[rows])
        return np.asarray(model.predict(scaler.transform(others)), dtype=np.float32)

    held, best = _held_out(len(features), seed), USUAL
    if held.any():
        best = min(
            STRENGTHS, key=lambda c: float(np.abs(fit(~held, features[held], c) - numbers[held]).mean())
        )
    found = fit(np.ones(len(features), dtype=bool), test, best)
    return found[:, None], {"strength": best, "held_out": int(held.sum())}


def _held_out(count: int, seed: int) -> NDArray[np.bool_]:
    """Return (N,): a fifth of the videos, at least one, and none of a single video."""
    held = np.zeros(count, dtype=bool)
    if count > 1:
        held[np.random.default_rng(seed).permutation(count)[: max(count // HELD_OUT, 1)]] = True
    return held


def attentive_of(
    head: Head,
    tokens: Floats,
    labels: NDArray[Any],
    test: Floats,
    *,
    heads: int,
    seed: int,
    device: torch.device,
) -> Output:
    """Train an attentive model with the loss of a head: see `attentive`.

    Args:
        head: multi-label, or of numbers with their mean and std.
        tokens, test: (N, K, D) and (M, K, D).
        labels: (N, C) or (N,).
    """
    loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy_with_logits
    if head.task != MULTI_LABEL:
        labels, loss = (labels[:, None] - head.mean) / head.std, F.smooth_l1_loss
    return attentive(
        tokens,
        labels.astype(np.float32),
        test,
        head.outputs,
        heads=heads,
        seed=seed,
        device=device,
        loss=loss,
        answer=lambda logits: answers(logits, (head,)),
    )
