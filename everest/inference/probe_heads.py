"""Probes of one feature a video: nearest neighbours, and a linear classifier.

N videos, D width, C classes.

The attentive probe: a learned query looks at the frozen tokens, as in V-JEPA (Bardes et al. 2024).

B videos, N tokens a video, D width, C classes.
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
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from everest.system.randomness import Purpose, generator_at, seed_at
from everest.train.optim import cosine_lr

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


EPOCHS: Final = 20  # V-JEPA
FEWEST_STEPS: Final = 300  # ours: of a small set more epochs
BATCH: Final = 64  # ours; V-JEPA: 256
PEAK_LR: Final = 1e-3  # V-JEPA
WARMUP: Final = 0.1  # ours: share of the steps
WEIGHT_DECAY: Final = 0.01  # V-JEPA


class AttentiveClassifier(nn.Module):
    """Norm, one block of cross-attention with a learned query, a linear head."""

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to logits (B, C)."""
        return self.head(self.pool(self.norm(tokens)))


def attentive(
    tokens: NDArray[np.float32],
    labels: NDArray[np.int64],
    asked: NDArray[np.float32],
    num_classes: int,
    *,
    heads: int,
    seed: int,
    device: torch.device,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Train the probe on tokens (videos, N, D) and ask it about others.

    Args:
        heads: of its attention; the encoder's.
        seed: of its first weights and of the order of the videos.
    Returns:
        (videos asked, C) probabilities, and what they were told by.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
        model = AttentiveClassifier(tokens.shape[-1], heads, num_classes).to(device)
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
            answer = torch.from_numpy(labels[chosen]).to(device)
            F.cross_entropy(model(_on(device, tokens[chosen])), answer).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.inference_mode():
        parts = [asked[first : first + BATCH] for first in range(0, len(asked), BATCH)]
        found = torch.cat([model(_on(device, part)).softmax(dim=-1).cpu() for part in parts])
    return found.numpy(), {"epochs": epochs}


def _on(device: torch.device, tokens: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.array(tokens)).to(device)  # a copy: the tokens lie in a file
