"""Linear models on features: logistic regression for classes, ridge regression for numbers.

N training videos, M test videos, D width, C outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from everest.config.heads import MULTI_LABEL, Head
from everest.metrics.predictions import label_probabilities
from everest.models.classifier import outputs_of
from everest.probes.classifiers import Labels
from everest.system.types import Floats

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice of sklearn's C = 1 / weight decay
VIDEOS_PER_HELD_OUT: Final = 5  # heuristic: one in five videos of each class selects the strength
DEFAULT_STRENGTH: Final = 1.0  # the default of sklearn
MAX_ITERATIONS: Final = 2000  # iterations of L-BFGS
ABSENT_CLASS_LOGIT: Final = -1000.0  # logit of a class without a training video
MIN_PROBABILITY: Final = 1e-6  # heuristic: limits the loss of a single confident mistake
FOLDS: Final = 5  # heuristic: maximum number of folds


class LinearModel(NamedTuple):
    """A linear layer for raw features, which sklearn fitted on standardized features."""

    weight: NDArray[np.float64]  # (C, D)
    bias: NDArray[np.float64]  # (C,)

    def outputs(self, features: Floats, head: Head) -> Floats:
        """Compute the probabilities or numbers (M, C) for features (M, D)."""
        logits = torch.from_numpy(features.astype(np.float64) @ self.weight.T + self.bias)
        return outputs_of(logits, (head,)).numpy()


def fit_linear(
    features: Floats, labels: Labels, head: Head, *, strengths: Sequence[float]
) -> Iterator[LinearModel]:
    """Yield a logistic regression, or ridge regression for numbers, on standardized features, by strength.

    A class without a training video has a constant output, as has a multi-label class that all videos have.
    With fewer videos than features, the fits are in the coordinates of the videos: the decay leaves a weight
    no part outside of them.

    Args:
        strengths: sklearn's C, 1 / weight decay.
    """
    values = features.astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)  # (D,)
    std[std == 0] = 1.0
    standardized = (values - mean) / std  # (N, D)
    basis = None  # (D, N)
    if len(standardized) < standardized.shape[1]:
        basis, coordinates = np.linalg.qr(standardized.T)
        standardized = coordinates.T  # (N, N)
    for strength in strengths:
        logistic = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # weak decay on few videos does not converge
            if head.task == "regression":
                ridge = Ridge(alpha=1 / strength).fit(standardized, (labels - head.mean) / head.std)
                weight, bias = ridge.coef_[None], np.array([ridge.intercept_])
            elif head.task == MULTI_LABEL:
                fits = [_fit_flags(logistic, standardized, flags) for flags in labels.T]
                weight, bias = (np.array(parts) for parts in zip(*fits, strict=True))
            else:
                weight, bias = _fit_classes(logistic, standardized, labels, head.outputs)
        weight = (weight if basis is None else weight @ basis.T) / std
        yield LinearModel(weight, bias - weight @ mean)


def _fit_flags(logistic: LogisticRegression, x: Floats, flags: Labels) -> tuple[Floats, float]:
    """Fit the weight (D,) and bias of a multi-label class, whose `flags` say which videos (N, D) have it."""
    if flags.all() or not flags.any():
        return np.zeros(x.shape[1]), -ABSENT_CLASS_LOGIT if flags.all() else ABSENT_CLASS_LOGIT
    logistic.fit(x, flags)
    return logistic.coef_[0], np.asarray(logistic.intercept_)[0]


def _fit_classes(
    logistic: LogisticRegression, x: Floats, labels: Labels, num_classes: int
) -> tuple[Floats, Floats]:
    """Fit the weights (C, D) and biases (C,) of classes, of which each video (N, D) has exactly one."""
    weight, bias = np.zeros((num_classes, x.shape[1])), np.full(num_classes, ABSENT_CLASS_LOGIT)
    classes = np.unique(labels)
    bias[classes] = 0.0
    if len(classes) > 1:
        logistic.fit(x, labels)
        rows = classes[1:] if len(classes) == 2 else classes  # of two, sklearn has only the second logit
        weight[rows], bias[rows] = logistic.coef_, np.asarray(logistic.intercept_)
    return weight, bias


Split = tuple[NDArray[np.int64], NDArray[np.int64]]  # the rows to fit on, and the rows to predict


def cross_predict(
    features: Floats, labels: Labels, head: Head, splits: Sequence[Split], *, strengths: Sequence[float]
) -> tuple[float, Floats]:
    """Find the strength with the smallest loss on held-out rows, and its outputs.

    The loss is the mean cross-entropy or squared error: unlike an accuracy, it differs for every strength.
    The smallest of equally good strengths is returned.

    Returns:
        The strength, and the outputs (N, C) for all rows; nan for rows that no split predicts.
    """
    outputs = np.full((len(strengths), len(features), head.outputs), np.nan, np.float32)
    for train_rows, test_rows in splits:
        models = fit_linear(features[train_rows], labels[train_rows], head, strengths=strengths)
        for number, model in enumerate(models):
            outputs[number, test_rows] = model.outputs(features[test_rows], head)
    seen = ~np.isnan(outputs[0, :, 0])  # (N,)
    losses = [compute_losses(of_strength[seen], labels[seen], head).mean() for of_strength in outputs]
    best = int(np.argmin(losses))
    return strengths[best], outputs[best]


def compute_losses(outputs: Floats, labels: Labels, head: Head) -> NDArray[np.float64]:
    """Compute the cross-entropy in nats, or the squared error, of each video (N,) from outputs (N, C)."""
    values = outputs.astype(np.float64)
    if head.task == "regression":
        return ((values[:, 0] - labels) / head.std) ** 2
    likelihood = label_probabilities(values, labels, head.task)
    return -np.log(np.maximum(likelihood, MIN_PROBABILITY)).mean(axis=1)


def make_group_splits(labels: Labels, sources: Sequence[str], head: Head, *, seed: int) -> list[Split]:
    """Make up to five splits that divide no source; a single source is divided by samples.

    There are none if no class has two samples.
    With single labels, each part has its fraction of each class, as far as the sources allow.
    """
    _, groups = np.unique(np.asarray(sources), return_inverse=True)
    if groups.max() == 0:
        groups = np.arange(len(groups))
    folds = min(FOLDS, int(groups.max()) + 1)
    is_stratified = head.task == "single-label"
    if is_stratified:  # sklearn requires this for stratified folds
        folds = min(folds, int(np.bincount(labels).max()))
    if folds < 2:
        return []
    splitter = (
        StratifiedGroupKFold(folds, shuffle=True, random_state=seed) if is_stratified else GroupKFold(folds)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # warns of classes with fewer videos than folds
        return list(splitter.split(np.zeros(len(labels)), labels, groups))


def linear(features: Floats, labels: Labels, test: Floats, head: Head, *, seed: int) -> Floats:
    """Fit a linear model with the strength that is best on a held-out part, then on all training videos.

    If no part can be held out, or less than two classes remain, the strength is sklearn's default.

    Args:
        seed: chooses the held-out part.
    """
    strata = labels if head.task == "single-label" else np.zeros(len(labels), dtype=np.int64)
    held = choose_held_out(strata, seed)
    can_choose = held.any() and not held.all()
    if head.task == MULTI_LABEL:
        can_choose = can_choose and labels[held].any()
    elif head.task == "single-label":
        can_choose = can_choose and len(np.unique(labels[~held])) > 1
    strength = DEFAULT_STRENGTH
    if can_choose:
        split = np.flatnonzero(~held), np.flatnonzero(held)
        strength, _ = cross_predict(features, labels, head, [split], strengths=STRENGTHS)
    (model,) = fit_linear(features, labels, head, strengths=[strength])
    return model.outputs(test, head)


def choose_held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Choose (N,) a fifth of each class, at least one video; none of a class with a single video."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        videos = rng.permutation(np.flatnonzero(labels == label))
        if len(videos) > 1:
            held[videos[: max(len(videos) // VIDEOS_PER_HELD_OUT, 1)]] = True
    return held
