"""Nearest neighbors of features, by cosine: k-NN, and what the nearest videos have in common.

N videos, M videos of a gallery, D width, C outputs, K neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from everest.config.heads import Head
from everest.lists.sample import Sample

Floats = NDArray[np.float32]
Labels = NDArray[Any]  # (N,) classes, (N, C) whether a video has a class, or (N,) numbers, by the task

NEIGHBORS: Final = 20  # DINO (Caron et al. 2021), appendix F.1: consistently the best of 10, 20, 100, 200
TEMPERATURE: Final = 0.07  # DINO, appendix F.1
RETRIEVED: Final = 10  # our choice: videos that a search shows
SIMILARITY_ROWS: Final = 1024  # of the similarities at once; our choice: 80 MB for 10,000 videos


class LabeledFeatures(NamedTuple):
    """Features of videos, with the class and the source of each."""

    features: Floats  # (N, D)
    labels: Labels
    sources: NDArray[Any]  # (N,) names or numbers

    @classmethod
    def of(cls, features: Floats, samples: Sequence[Sample], position: int = 0) -> LabeledFeatures:
        """The features of samples with their labels of the head at `position`."""
        labels = np.array([sample.labels[position] for sample in samples], dtype=np.int64)
        return cls(features, labels, sources=np.array([sample.source for sample in samples]))


def nearest_neighbors(features: Floats, labels: Labels, test: Floats, head: Head) -> Floats:
    """Let the nearest training videos vote, by cosine, with weight exp(similarity / temperature) as in DINO.

    Of several classes and of numbers the output is the weighted mean of their labels.

    Args:
        features, test: (M, D) and (N, D).
    """
    search = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(features)), metric="cosine").fit(features)
    distances, nearest = search.kneighbors(test)  # (N, K) each
    return _vote(labels, nearest, 1 - distances, head).astype(np.float32)


def leave_one_out(known: LabeledFeatures, num_classes: int) -> float | None:
    """The accuracy in percent of k-NN for each video, as `everest probe` votes.

    A video of the same source does not vote. A video without any voter counts as wrong.

    Returns:
        None if no class has videos of two sources: every output would be wrong.
    """
    if not _has_match(known, known).any():
        return None
    nearest, cosines = _nearest(known, known, NEIGHBORS)
    outputs = _vote(known.labels, nearest, cosines, Head(outputs=num_classes))
    correct = outputs.any(axis=1) & (outputs.argmax(axis=1) == known.labels)
    return 100 * int(correct.sum()) / len(correct)


def _vote(labels: Labels, nearest: NDArray[np.int64], cosines: NDArray[Any], head: Head) -> NDArray[Any]:
    """The means (N, C) of the labels of the nearest videos (N, K), by their cosines (N, K); 0 without any."""
    if head.task == "single-label":
        labels = np.eye(head.outputs)[labels]  # (M, C)
    weights = np.exp(cosines / TEMPERATURE)[..., None]  # (N, K, 1); 0 of the same source
    sums = (weights * labels.reshape(len(labels), -1)[nearest]).sum(axis=1)  # (N, C)
    totals = weights.sum(axis=1)  # (N, 1)
    return np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


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
    units, gallery_units = unit_rows(queries.features), unit_rows(gallery.features)
    # Numbers are compared faster than names.
    _, numbers = np.unique(np.concatenate([queries.sources, gallery.sources]), return_inverse=True)
    sources, gallery_sources = np.split(numbers, [len(units)])
    nearest, cosines = [], []
    for first in range(0, len(units), SIMILARITY_ROWS):
        rows = slice(first, first + SIMILARITY_ROWS)
        similarity = units[rows] @ gallery_units.T  # (rows, M)
        similarity[sources[rows, None] == gallery_sources] = -np.inf
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :count])
        cosines.append(np.take_along_axis(similarity, nearest[-1], axis=1))
    return np.concatenate(nearest), np.concatenate(cosines)


def unit_rows(features: Floats) -> NDArray[np.float64]:
    """The rows (N, D) divided by their norms; a row of zeros stays."""
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
