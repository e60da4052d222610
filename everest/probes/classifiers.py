"""Simple classifiers of features: nearest neighbors, a linear model, and attention over tokens.

All take features of the training videos, their labels and the features of the test videos, and return outputs
(M, C). Labels are (N,) classes, (N, C) whether a video has a class, or (N,) numbers, by the task of the head.

N training videos, M test videos, K tokens per video, D width, C outputs.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from everest.config.heads import MULTI_LABEL, Head
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.plan import cosine_lr
from everest.models.classifier import outputs_of

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]  # (N,)

NEIGHBORS: Final = 20  # DINO (Caron et al. 2021), appendix F.1: consistently the best of 10, 20, 100, 200
TEMPERATURE: Final = 0.07  # DINO, appendix F.1

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice of sklearn's C = 1 / weight decay
USUAL: Final = 1.0  # sklearn's strength, where nothing can be held out
HELD_OUT: Final = 5  # our choice: one in five videos of each class selects the strength
MOST_STEPS: Final = 2000  # of L-BFGS

EPOCHS: Final = 20  # V-JEPA
FEWEST_STEPS: Final = 300  # our choice: a small set gets more epochs
BATCH: Final = 64  # our choice; V-JEPA: 256
PEAK_LR: Final = 1e-3  # V-JEPA
WARMUP: Final = 0.1  # our choice: share of the steps
WEIGHT_DECAY: Final = 0.01  # V-JEPA
LOSSES: Final = {
    "single-label": F.cross_entropy,
    MULTI_LABEL: F.binary_cross_entropy_with_logits,
    "regression": F.smooth_l1_loss,
}


def nearest_neighbors(features: Floats, labels: NDArray[Any], test: Floats, head: Head) -> Floats:
    """Let the nearest training videos vote, by cosine, with weight exp(similarity / temperature) as in DINO.

    Of several classes and of numbers the output is the weighted mean of their labels.
    """
    search = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(features)), metric="cosine").fit(features)
    distances, nearest = search.kneighbors(test)  # (M, neighbors) each
    weights = np.exp((1 - distances) / TEMPERATURE)
    if head.task == "single-label":
        labels = np.eye(head.outputs)[labels]  # (N, C)
    values = labels.reshape(len(labels), -1)[nearest]  # (M, neighbors, C)
    means = (weights[..., None] * values).sum(axis=1) / weights.sum(axis=1, keepdims=True)
    return means.astype(np.float32)


def linear(
    features: Floats,
    labels: NDArray[Any],
    test: Floats,
    head: Head,
    *,
    seed: int,
    chosen_on: NDArray[np.bool_] | None = None,
) -> Floats:
    """Fit a linear model of standardized features: logistic regression, or ridge regression of numbers.

    Its strength is the best one on a held-out part of the training videos, the smallest of equal ones: by
    accuracy, mean average precision or mean absolute error. Then it is fitted on all training videos.

    Args:
        seed: of the draw of the held-out part.
        chosen_on: the held-out part, (N,); None: it is drawn.
    """
    strata = labels if head.task == "single-label" else np.zeros(len(labels), dtype=np.int64)
    held = held_out(strata, seed) if chosen_on is None else chosen_on

    def score(strength: float) -> float:
        outputs = _fit(features[~held], labels[~held], features[held], head, strength)
        known = labels[held]
        if head.task == "single-label":
            return float((outputs.argmax(axis=1) == known).mean())
        if head.task == "regression":
            return -float(np.abs(outputs[:, 0] - known).mean())
        shown = np.flatnonzero(known.any(axis=0))
        return float(np.mean([average_precision_score(known[:, c], outputs[:, c]) for c in shown]))

    is_scored = held.any() and (head.task != MULTI_LABEL or labels[held].any())
    strength = max(STRENGTHS, key=score) if is_scored else USUAL
    return _fit(features, labels, test, head, strength)


def held_out(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """Return (N,): a fifth of each class, at least one video, and none of a class with a single video."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        videos = rng.permutation(np.flatnonzero(labels == label))
        if len(videos) > 1:
            held[videos[: max(len(videos) // HELD_OUT, 1)]] = True
    return held


def _fit(features: Floats, labels: NDArray[Any], test: Floats, head: Head, strength: float) -> Floats:
    """The outputs (M, C) of a linear model; without training videos that differ, a class is certain."""
    scaler = StandardScaler().fit(features)
    inputs, tested = scaler.transform(features), scaler.transform(test)
    if head.task == "regression":
        return Ridge(alpha=1 / strength).fit(inputs, labels).predict(tested).reshape(-1, 1).astype(np.float32)
    outputs = np.zeros((len(test), head.outputs), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the strongest models on few videos
        if head.task == "single-label":
            model = LogisticRegression(C=strength, max_iter=MOST_STEPS).fit(inputs, labels)
            outputs[:, model.classes_] = model.predict_proba(tested)  # a class may have no training video
            return outputs
        for number, column in enumerate(labels.T):
            if column.all() or not column.any():
                outputs[:, number] = column[0]
                continue
            model = LogisticRegression(C=strength, max_iter=MOST_STEPS).fit(inputs, column)
            outputs[:, number] = model.predict_proba(tested)[:, 1]
    return outputs


def attentive(
    tokens: Floats,
    labels: NDArray[Any],
    test: Floats,
    head: Head,
    *,
    heads: int,
    seed: int,
    device: torch.device,
) -> Floats:
    """Train attention with a learned query, and a linear head, on tokens (Bardes et al. 2024).

    Args:
        tokens, test: (N, K, D) and (M, K, D).
        head: of numbers with their mean and std; it names the loss.
        heads: of the attention; the encoder's.
        seed: of the first weights and of the order of the videos.
    """
    if head.task != "single-label":
        values = labels if head.task == MULTI_LABEL else (labels[:, None] - head.mean) / head.std
        labels = values.astype(np.float32)  # (N, C)
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
        width = tokens.shape[-1]
        pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        model = nn.Sequential(nn.LayerNorm(width), pool, nn.Linear(width, head.outputs)).to(device)
    per_epoch = math.ceil(len(tokens) / BATCH)
    steps = max(EPOCHS, math.ceil(FEWEST_STEPS / per_epoch)) * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)

    def on_device(rows: Floats) -> Tensor:
        return torch.from_numpy(np.array(rows)).to(device)  # a copy, because the tokens are memory-mapped

    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = generator_at(seed, Purpose.ORDER, epoch).permutation(len(tokens))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        rate = cosine_lr(step, steps=steps, warmup=int(WARMUP * steps), peak=PEAK_LR, minimum=0.0)
        optimizer.param_groups[0]["lr"] = rate
        LOSSES[head.task](model(on_device(tokens[chosen])), on_device(labels[chosen])).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        parts = [test[first : first + BATCH] for first in range(0, len(test), BATCH)]
        outputs = [outputs_of(model(on_device(part)), (head,)).cpu() for part in parts]
    return torch.cat(outputs).numpy()
