"""The attentive probe: a learned query looks at the frozen tokens, as in V-JEPA (Bardes et al. 2024).

B videos, N tokens a video, D width, C classes.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from everest.system.randomness import Purpose, generator_at, seed_at
from everest.train.optim import cosine_lr

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
