"""Measures of features: neighbors and folds that keep sources apart, and signs of collapse.

The measures without labels are of SimSiam (Chen & He 2021) and RankMe (Garrido et al. 2023).

N videos, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from everest.config.heads import Head
from everest.probes.classifiers import NEIGHBORS, TEMPERATURE, Floats, Labels, linear

FOLDS: Final = 5  # our choice
RETRIEVED: Final = 10  # our choice: videos that a search shows
SMALLEST: Final = 1e-7  # RankMe, eq. 1: added to each share
ROWS: Final = 1024  # of the similarities at once; our choice: 80 MB for 10,000 videos

Sources = NDArray[np.int64]  # (N,)


class LabeledFeatures(NamedTuple):
    """Features of videos, with the class and the source of each."""

    features: Floats  # (N, D)
    labels: Labels
    sources: Sources  # the same number for equal names


def numbered(names: Sequence[str]) -> Sources:
    """A number (N,) for each name; equal names have equal numbers."""
    return np.unique(np.array(names), return_inverse=True)[1]


def leave_one_out(known: LabeledFeatures, num_classes: int) -> float | None:
    """The accuracy in percent of k-NN for each video, as `everest probe` votes.

    A video of the same source does not vote. A video without any voter counts as wrong.

    Returns:
        None if no class has videos of two sources: every answer would be wrong.
    """
    features, labels, sources = known
    if not any(len(np.unique(sources[labels == label])) > 1 for label in np.unique(labels)):
        return None
    correct = 0
    for rows, similarity in _similarities(features, sources, features, sources):
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBORS]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / TEMPERATURE)  # 0 if not allowed
        votes = (weights[..., None] * np.eye(num_classes)[labels[nearest]]).sum(axis=1)  # (rows, C)
        correct += int((votes.any(axis=1) & (votes.argmax(axis=1) == labels[rows])).sum())
    return 100 * correct / len(features)


def precision_of_nearest(queries: LabeledFeatures, gallery: LabeledFeatures) -> float | None:
    """The percentage of the `RETRIEVED` nearest videos of other sources that have the class of a video.

    Args:
        queries, gallery: N and M videos, whose sources are numbers of the same names; they may be the same.
    Returns:
        The mean over the queries that have a video of their class and another source; None without any.
    """
    shares = []
    for rows, similarity in _similarities(
        queries.features, queries.sources, gallery.features, gallery.sources
    ):
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :RETRIEVED]
        allowed = np.take_along_axis(similarity, nearest, axis=1) > -np.inf  # (rows, RETRIEVED)
        same = gallery.labels == queries.labels[rows, None]  # (rows, M)
        right = np.take_along_axis(same, nearest, axis=1) & allowed
        tested = (same & (similarity > -np.inf)).any(axis=1)  # the others have nothing to find
        shares += list(right.sum(axis=1)[tested] / allowed.sum(axis=1)[tested])
    return 100 * float(np.mean(shares)) if shares else None


def class_and_group(known: LabeledFeatures) -> tuple[float, float] | None:
    """Two percentages: how often the nearest video from another source has the same class, and how often the
    nearest video of another class has the same source.

    Returns:
        None unless a source has videos of several classes, and a class of several sources.
    """
    by_class = _same_nearest(known.features, wanted=known.labels, excluded=known.sources)
    by_source = _same_nearest(known.features, wanted=known.sources, excluded=known.labels)
    return None if by_class is None or by_source is None else (by_class, by_source)


def _same_nearest(features: Floats, *, wanted: Labels, excluded: Labels) -> float | None:
    """How often (%) the nearest video with another `excluded` has the same `wanted`, where one could have."""
    hits = []
    for rows, similarity in _similarities(features, excluded, features, excluded):
        same = wanted[rows, None] == wanted  # (rows, N)
        tested = (same & (similarity > -np.inf)).any(axis=1)
        hits += list(same[np.arange(len(same)), similarity.argmax(axis=1)][tested])
    return 100 * float(np.mean(hits)) if hits else None


def _similarities(
    queries: Floats, sources: Sources, gallery: Floats, gallery_sources: Sources
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Cosines (rows, M) of `ROWS` queries at a time with the gallery; -inf of the same source."""
    units, gallery_units = unit_rows(queries), unit_rows(gallery)
    for first in range(0, len(units), ROWS):
        rows = slice(first, first + ROWS)
        similarity = units[rows] @ gallery_units.T
        similarity[sources[rows, None] == gallery_sources] = -np.inf
        yield rows, similarity


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
    for fitted, tested in splitter.split(np.zeros((len(labels), 1)), labels, sources):
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
    total = values.sum()
    if not total > 0:
        return 1.0
    shares = values / total + SMALLEST
    return float(np.exp(-(shares * np.log(shares)).sum()))


def feature_std(features: Floats) -> float:
    """The mean over channels of the std of unit features, times sqrt(D) (SimSiam, section 4.1).

    It is 0 if all features point the same way, and 1 if they are spread uniformly over all directions.
    """
    units = unit_rows(features)
    return float(units.std(axis=0).mean() * np.sqrt(units.shape[1]))


def unit_rows(features: Floats) -> NDArray[np.float64]:
    """The rows (N, D) divided by their norms; a row of zeros stays."""
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
