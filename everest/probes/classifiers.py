"""Classifiers on features (k-NN, attention over tokens), and measures of what nearest videos share.

The classifiers take features (N, D) of the training videos, their labels and the features (M, D) of the test
videos, and return outputs (M, C).

N training or query videos, M test or gallery videos, K tokens per video or neighbors, D width, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import normalize
from torch import nn

from everest.config.heads import MULTI_LABEL, Head
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.schedule import cosine_lr
from everest.lists.sample import Sample
from everest.models.classifier import outputs_of, soft_targets, supervised_loss
from everest.system.types import Floats

Labels = NDArray[Any]  # by task: (N,) classes, (N, C) flags of classes, or (N,) numbers

NEIGHBORS: Final = 20  # DINO (Caron et al. 2021), appendix F.1: consistently the best of 10, 20, 100, 200
TEMPERATURE: Final = 0.07  # DINO, appendix F.1
RETRIEVED_VIDEOS: Final = 10  # heuristic: videos that a search shows
SIMILARITY_ROWS: Final = 1024  # rows of similarities at a time; heuristic: 80 MB for 10,000 videos

ATTENTIVE_EPOCHS: Final = 20  # V-JEPA
ATTENTIVE_STEPS: Final = 300  # heuristic: minimum steps, so a small set gets more epochs
ATTENTIVE_BATCH: Final = 64  # heuristic; V-JEPA: 256
ATTENTIVE_LR: Final = 1e-3  # V-JEPA, peak learning rate
ATTENTIVE_WARMUP: Final = 0.1  # heuristic: fraction of the steps
ATTENTIVE_WEIGHT_DECAY: Final = 0.01  # V-JEPA


class LabeledFeatures(NamedTuple):
    """Features of videos, with the class and the source of each."""

    features: Floats  # (N, D)
    labels: Labels
    sources: NDArray[Any]  # (N,) names or numbers

    @classmethod
    def of(cls, features: Floats, samples: Sequence[Sample], position: int = 0) -> LabeledFeatures:
        """Join the features of samples with their labels for the head at `position`."""
        labels = np.array([sample.labels[position] for sample in samples], dtype=np.int64)
        return cls(features, labels, sources=np.array([sample.group_or_path for sample in samples]))


def nearest_neighbors(features: Floats, labels: Labels, test: Floats, head: Head) -> Floats:
    """Let the nearest training videos vote, by cosine, with weight exp(similarity / temperature) as in DINO.

    For multi-label heads and numbers, the output is the weighted mean of the labels.
    """
    gallery = LabeledFeatures(features, labels, sources=np.zeros(len(features)))
    queries = LabeledFeatures(test, np.zeros(len(test)), sources=np.ones(len(test)))  # a separate source
    nearest, cosines = _find_nearest(queries, gallery, NEIGHBORS)
    return _vote(labels, nearest, cosines, head).astype(np.float32)


def _vote(labels: Labels, nearest: NDArray[np.int64], cosines: NDArray[Any], head: Head) -> NDArray[Any]:
    """Average the labels of the nearest videos (N, K) by their cosines (N, K): (N, C); 0 without any."""
    if head.task == "single-label":
        labels = np.eye(head.outputs)[labels]  # (M, C)
    weights = np.exp(cosines / TEMPERATURE)[..., None]  # (N, K, 1); 0 for the same source
    sums = (weights * labels.reshape(len(labels), -1)[nearest]).sum(axis=1)  # (N, C)
    totals = weights.sum(axis=1)  # (N, 1)
    return np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


def measure_precision(
    queries: LabeledFeatures, gallery: LabeledFeatures, *, count: int = RETRIEVED_VIDEOS
) -> float | None:
    """Measure the percentage of the `count` nearest videos of other sources that share a video's class.

    It is the mean over queries with a gallery video of their class from another source; None without any.
    """
    has_match = _has_match(queries, gallery)
    if not has_match.any():
        return None
    nearest, cosines = _find_nearest(queries, gallery, count)
    is_candidate = cosines > -np.inf
    correct = is_candidate & (gallery.labels[nearest] == queries.labels[:, None])
    return 100 * float((correct.sum(axis=1)[has_match] / is_candidate.sum(axis=1)[has_match]).mean())


def compare_sources(labeled: LabeledFeatures) -> tuple[float, float] | None:
    """Two percentages: how often the nearest video from another source has the same class, and how often the
    nearest video of another class has the same source.

    None unless a source has videos of several classes, and a class has videos of several sources.
    """
    swapped = LabeledFeatures(labeled.features, labels=labeled.sources, sources=labeled.labels)
    by_class, by_group = (measure_precision(each, each, count=1) for each in (labeled, swapped))
    return None if by_class is None or by_group is None else (by_class, by_group)


def _has_match(queries: LabeledFeatures, gallery: LabeledFeatures) -> NDArray[np.bool_]:
    """Return (N,) whether the gallery has a video of a query's class from another source."""
    sources = {label: set(gallery.sources[gallery.labels == label]) for label in np.unique(queries.labels)}
    pairs = zip(queries.labels, queries.sources, strict=True)
    return np.array([len(sources[label]) > (source in sources[label]) for label, source in pairs])


def _find_nearest(
    queries: LabeledFeatures, gallery: LabeledFeatures, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the most similar gallery videos (N, K) and their cosines (N, K), -inf for the same source."""
    units, gallery_units = (
        np.asarray(normalize(part.features.astype(np.float64))) for part in (queries, gallery)
    )
    # Comparing numbers is faster than comparing names.
    _, source_ids = np.unique(np.concatenate([queries.sources, gallery.sources]), return_inverse=True)
    query_sources, gallery_sources = np.split(source_ids, [len(units)])
    nearest, cosines = [], []
    for first in range(0, len(units), SIMILARITY_ROWS):
        rows = slice(first, first + SIMILARITY_ROWS)
        similarity = units[rows] @ gallery_units.T  # (rows, M)
        similarity[query_sources[rows, None] == gallery_sources] = -np.inf
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :count])
        cosines.append(np.take_along_axis(similarity, nearest[-1], axis=1))
    return np.concatenate(nearest), np.concatenate(cosines)


def attentive(
    tokens: Floats, labels: Labels, test: Floats, head: Head, *, heads: int, seed: int, device: torch.device
) -> Floats:
    """Train attention with a learned query, and a linear head, on tokens (Bardes et al. 2024).

    Args:
        tokens, test: (N, K, D) and (M, K, D); both may be memory-mapped.
        head: determines the loss; a head of numbers has their mean and std.
        heads: number of attention heads, as in the encoder.
        seed: seeds the initial weights and the order of the videos.
    """
    from timm.layers.attention_pool import AttentionPoolLatent  # here: timm takes seconds to import

    values = labels if head.task == MULTI_LABEL else labels[:, None]  # (N, L)
    if head.task == "regression":
        values = (values - head.mean) / head.std
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
        width = tokens.shape[-1]
        pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        model = nn.Sequential(nn.LayerNorm(width), pool, nn.Linear(width, head.outputs)).to(device)
    per_epoch = math.ceil(len(tokens) / ATTENTIVE_BATCH)
    steps = max(ATTENTIVE_EPOCHS, math.ceil(ATTENTIVE_STEPS / per_epoch)) * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=ATTENTIVE_WEIGHT_DECAY)
    warmup = int(ATTENTIVE_WARMUP * steps)
    for step in range(steps):
        epoch, batch_index = divmod(step, per_epoch)
        order = generator_at(seed, Purpose.ORDER, epoch).permutation(len(tokens))
        rows = order[batch_index * ATTENTIVE_BATCH : (batch_index + 1) * ATTENTIVE_BATCH]
        lr = cosine_lr(step, steps=steps, warmup=warmup, peak=ATTENTIVE_LR, minimum=0.0)
        optimizer.param_groups[0]["lr"] = lr
        outputs = model(torch.tensor(tokens[rows], device=device))
        batch_labels = torch.tensor(values[rows].astype(np.float32), device=device)
        targets = soft_targets(batch_labels, (head,), smoothing=0.0)  # (B, C)
        supervised_loss(outputs, targets, (head,), [None]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        parts = [test[first : first + ATTENTIVE_BATCH] for first in range(0, len(test), ATTENTIVE_BATCH)]
        outputs = [outputs_of(model(torch.tensor(part, device=device)), (head,)).cpu() for part in parts]
    return torch.cat(outputs).numpy()
