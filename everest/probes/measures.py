"""Measures of features: neighbors and folds that keep sources apart, and signs of collapse.

The measures without labels are of SimSiam (Chen & He 2021) and RankMe (Garrido et al. 2023).

N videos, M videos of a gallery, D width, C classes, K neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from everest.config.heads import Head
from everest.lists.sample import Sample
from everest.probes.classifiers import NEIGHBORS, TEMPERATURE, Floats, linear

FOLDS: Final = 5  # our choice
RETRIEVED: Final = 10  # our choice: videos that a search shows
SMALLEST: Final = 1e-7  # RankMe, eq. 1: added to each share
ROWS: Final = 1024  # of the similarities at once; our choice: 80 MB for 10,000 videos


class LabeledFeatures(NamedTuple):
    """Features of videos, with the class and the source of each."""

    features: Floats  # (N, D)
    labels: NDArray[Any]  # (N,)
    sources: NDArray[Any]  # (N,) names or numbers

    @classmethod
    def of(cls, features: Floats, samples: Sequence[Sample], position: int = 0) -> LabeledFeatures:
        """The features of samples with their labels of the head at `position`."""
        labels = np.array([sample.labels[position] for sample in samples], dtype=np.int64)
        return cls(features, labels, sources=np.array([sample.source for sample in samples]))


def leave_one_out(known: LabeledFeatures, num_classes: int) -> float | None:
    """The accuracy in percent of k-NN for each video, as `everest probe` votes.

    A video of the same source does not vote. A video without any voter counts as wrong.

    Returns:
        None if no class has videos of two sources: every answer would be wrong.
    """
    if not _has_match(known, known).any():
        return None
    nearest, cosines = _nearest(known, known, NEIGHBORS)
    weights = np.exp(cosines / TEMPERATURE)  # 0 of the same source
    votes = (weights[..., None] * np.eye(num_classes)[known.labels[nearest]]).sum(axis=1)  # (N, C)
    correct = votes.any(axis=1) & (votes.argmax(axis=1) == known.labels)
    return 100 * int(correct.sum()) / len(correct)


def precision_of_nearest(
    queries: LabeledFeatures, gallery: LabeledFeatures, *, count: int = RETRIEVED
) -> float | None:
    """The percentage of the `count` nearest videos of other sources that have the class of a video.

    Args:
        queries, gallery: N and M videos, which may be the same.
    Returns:
        The mean over the queries that have a video of their class and another source; None without any.
    """
    tested = _has_match(queries, gallery)
    if not tested.any():
        return None
    nearest, cosines = _nearest(queries, gallery, count)
    allowed = cosines > -np.inf
    right = allowed & (gallery.labels[nearest] == queries.labels[:, None])
    return 100 * float((right.sum(axis=1)[tested] / allowed.sum(axis=1)[tested]).mean())


def class_and_group(known: LabeledFeatures) -> tuple[float, float] | None:
    """Two percentages: how often the nearest video from another source has the same class, and how often the
    nearest video of another class has the same source.

    Returns:
        None unless a source has videos of several classes, and a class of several sources.
    """
    swapped = LabeledFeatures(known.features, labels=known.sources, sources=known.labels)
    by_class, by_group = (precision_of_nearest(each, each, count=1) for each in (known, swapped))
    return None if by_class is None or by_group is None else (by_class, by_group)


def _has_match(queries: LabeledFeatures, gallery: LabeledFeatures) -> NDArray[np.bool_]:
    """Whether (N,) the gallery has a video of a query's class and another source."""
    sources = {label: set(gallery.sources[gallery.labels == label]) for label in np.unique(queries.labels)}
    pairs = zip(queries.labels, queries.sources, strict=True)
    return np.array([len(sources[label]) > (source in sources[label]) for label, source in pairs])


def _nearest(
    queries: LabeledFeatures, gallery: LabeledFeatures, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most similar videos of the gallery (N, K), and their cosines (N, K), -inf of the same source."""
    units, gallery_units = _unit_rows(queries.features), _unit_rows(gallery.features)
    # Numbers are compared faster than names.
    _, numbers = np.unique(np.concatenate([queries.sources, gallery.sources]), return_inverse=True)
    sources, gallery_sources = np.split(numbers, [len(units)])
    nearest, cosines = [], []
    for first in range(0, len(units), ROWS):
        rows = slice(first, first + ROWS)
        similarity = units[rows] @ gallery_units.T  # (rows, M)
        similarity[sources[rows, None] == gallery_sources] = -np.inf
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :count])
        cosines.append(np.take_along_axis(similarity, nearest[-1], axis=1))
    return np.concatenate(nearest), np.concatenate(cosines)


def cross_validated(known: LabeledFeatures, num_classes: int, *, seed: int) -> float | None:
    """The accuracy in percent of logistic regression, in up to five folds that divide no source.

    Args:
        seed: of the draw of the folds.
    Returns:
        None if a class has a single source, or the videos for fitting have one class.
    """
    features, labels, sources = known
    folds = min(FOLDS, *(len(np.unique(sources[labels == label])) for label in np.unique(labels)))
    if folds < 2:
        return None
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    head, correct = Head(outputs=num_classes), 0
    for fitted, tested in splitter.split(features, labels, sources):
        if len(np.unique(labels[fitted])) < 2:
            return None
        probabilities = linear(features[fitted], labels[fitted], features[tested], head, seed=seed)
        correct += int((probabilities.argmax(axis=1) == labels[tested]).sum())
    return 100 * correct / len(labels)


def rank_me(features: Floats) -> float:
    """The exponential of the entropy of the normalized singular values (RankMe, eq. 1).

    It is between 1 and min(N, D). Features that are all zero have rank 1.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)  # (min(N, D),)
    if not values.any():
        return 1.0
    shares = values / values.sum() + SMALLEST
    return float(np.exp(-(shares * np.log(shares)).sum()))


def feature_std(features: Floats) -> float:
    """The mean over channels of the std of unit features, times sqrt(D) (SimSiam, section 4.1).

    It is 0 if all features point the same way, and 1 if they are spread uniformly over all directions.
    """
    return float(_unit_rows(features).std(axis=0).mean() * np.sqrt(features.shape[1]))


def _unit_rows(features: Floats) -> NDArray[np.float64]:
    """The rows (N, D) divided by their norms; a row of zeros stays."""
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
