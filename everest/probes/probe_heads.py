"""The classifiers of a probe: nearest neighbors, logistic regression, and attention with a learned query.

The attentive probe follows V-JEPA (Bardes et al. 2024).

N training videos, M test videos, K tokens per video, D width, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from everest.data.randomness import Purpose, generator_at, seed_at
from everest.train.network import cosine_lr

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]  # (N,)
Output = tuple[Floats, dict[str, Any]]  # (M, C) probabilities of the test videos; settings for the report

NEIGHBORS: Final = 20  # DINO (Caron et al. 2021), appendix F.1: consistently the best of 10, 20, 100, 200
TEMPERATURE: Final = 0.07  # DINO, appendix F.1
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice of sklearn's C = 1 / weight decay
HELD_OUT: Final = 5  # our choice: one in five videos of each class selects the strength
MOST_STEPS: Final = 2000  # of L-BFGS

EPOCHS: Final = 20  # V-JEPA
FEWEST_STEPS: Final = 300  # our choice: a small set gets more epochs
BATCH: Final = 64  # our choice; V-JEPA: 256
PEAK_LR: Final = 1e-3  # V-JEPA
WARMUP: Final = 0.1  # our choice: share of the steps
WEIGHT_DECAY: Final = 0.01  # V-JEPA


def nearest_neighbors(features: Floats, labels: Labels, test: Floats, num_classes: int) -> Output:
    """Let the nearest training videos vote, by cosine, with weight exp(similarity / temperature) as in DINO.

    Args:
        features, test: (N, D) and (M, D).
    """
    nearest, weights = neighbors(features, test)
    votes = np.zeros((len(test), num_classes), dtype=np.float32)
    np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
    return votes / votes.sum(axis=1, keepdims=True), neighbor_settings(nearest)


def neighbors(features: Floats, test: Floats) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest training videos of each test video and their weights, (M, neighbors) each."""
    search = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(features)), metric="cosine").fit(features)
    distances, nearest = search.kneighbors(test)
    return nearest, np.exp((1 - distances) / TEMPERATURE)


def neighbor_settings(nearest: NDArray[np.int64]) -> dict[str, Any]:
    """Return the settings for the report."""
    return {"neighbours": nearest.shape[1], "temperature": TEMPERATURE}


def linear(features: Floats, labels: Labels, test: Floats, num_classes: int, *, seed: int) -> Output:
    """Fit a logistic regression of standardized features.

    Its strength is the best one on a held-out part of the training set, the smallest of equal ones. The
    regression is then fitted on the whole training set.

    Args:
        features, test: (N, D) and (M, D).
        seed: of the draw of the held-out part.
    """
    held = held_out(labels, seed)
    best = 1.0  # sklearn's default, where each class has a single video and nothing can be held out
    if held.any():
        fits = {c: _fit(features[~held], labels[~held], c)[0] for c in STRENGTHS}
        best = max(STRENGTHS, key=lambda c: fits[c].score(features[held], labels[held]))
    model, converged = _fit(features, labels, best)
    probabilities = np.zeros((len(test), num_classes), dtype=np.float32)
    probabilities[:, np.unique(labels)] = model.predict_proba(test)  # a class may have no training video
    return probabilities, {"strength": best, "held_out": int(held.sum()), "converged": converged}


def held_out(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """Return (N,): a fifth of each class, at least one video, and none of a class with a single video."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        videos = rng.permutation(np.flatnonzero(labels == label))
        if len(videos) > 1:
            held[videos[: max(len(videos) // HELD_OUT, 1)]] = True
    return held


def _fit(features: Floats, labels: Labels, strength: float) -> tuple[Pipeline, bool]:
    """Return the model, and whether it has converged."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_STEPS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    return model, not caught


class AttentiveClassifier(nn.Module):
    """A norm, one block of cross-attention with a learned query, and a linear head."""

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, D) to logits (B, C)."""
        return self.head(self.pool(self.norm(tokens)))


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def attentive(
    tokens: Floats,
    labels: NDArray[Any],
    test: Floats,
    num_outputs: int,
    *,
    heads: int,
    seed: int,
    device: torch.device,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    answer: Callable[[Tensor], Tensor] = _softmax,
) -> Output:
    """Train an attentive classifier on tokens.

    Args:
        tokens, test: (N, K, D) and (M, K, D).
        labels: (N,) classes, or what `loss` takes.
        heads: of its attention; the encoder's.
        seed: of its first weights and of the order of the videos.
        loss: of logits (B, num_outputs) and the labels of the same videos.
        answer: converts logits to probabilities or numbers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
        model = AttentiveClassifier(tokens.shape[-1], heads, num_outputs).to(device)
    per_epoch = math.ceil(len(tokens) / BATCH)
    epochs = max(EPOCHS, math.ceil(FEWEST_STEPS / per_epoch))
    steps = epochs * per_epoch
    rates = (
        cosine_lr(step, steps=steps, warmup=int(WARMUP * steps), peak=PEAK_LR, minimum=0.0)
        for step in range(steps)
    )
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    for epoch in range(epochs):
        order = generator_at(seed, Purpose.ORDER, epoch).permutation(len(tokens))
        for first in range(0, len(tokens), BATCH):
            chosen = order[first : first + BATCH]
            optimizer.param_groups[0]["lr"] = next(rates)
            target = torch.from_numpy(labels[chosen]).to(device)
            loss(model(_on_device(tokens[chosen], device)), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.inference_mode():
        parts = [test[first : first + BATCH] for first in range(0, len(test), BATCH)]
        outputs = [answer(model(_on_device(part, device))).cpu() for part in parts]
    return torch.cat(outputs).numpy(), {"epochs": epochs}


def _on_device(tokens: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(tokens)).to(device)  # a copy, because the tokens are memory-mapped
