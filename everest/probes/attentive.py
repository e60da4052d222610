"""The attentive probe: attention with a learned query, as in V-JEPA (Bardes et al. 2024).

N training videos, M test videos, K tokens per video, D width, C outputs.
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

from everest.config.heads import MULTI_LABEL, Head
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.plan import cosine_lr
from everest.models.classifier import answers
from everest.probes.probe_heads import Floats, Output

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


class AttentiveClassifier(nn.Module):
    """A norm, one block of cross-attention with a learned query, and a linear head."""

    def __init__(self, width: int, heads: int, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, D) to logits (B, C)."""
        return self.head(self.pool(self.norm(tokens)))


def attentive(
    tokens: Floats,
    labels: NDArray[Any],
    test: Floats,
    head: Head,
    *,
    heads: int,
    seed: int,
    device: torch.device,
) -> Output:
    """Train an attentive model on tokens, with the loss of a head.

    Args:
        tokens, test: (N, K, D) and (M, K, D).
        labels: (N,) classes, (N, C) whether a video has a class, or (N,) numbers.
        head: of numbers with their mean and std.
        heads: of its attention; the encoder's.
        seed: of its first weights and of the order of the videos.
    """
    if head.task != "single-label":
        values = labels if head.task == MULTI_LABEL else (labels[:, None] - head.mean) / head.std
        labels = values.astype(np.float32)  # (N, C)
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
        model = AttentiveClassifier(tokens.shape[-1], heads, head.outputs).to(device)
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
            LOSSES[head.task](model(_on_device(tokens[chosen], device)), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.inference_mode():
        parts = [test[first : first + BATCH] for first in range(0, len(test), BATCH)]
        outputs = [answers(model(_on_device(part, device)), (head,)).cpu() for part in parts]
    return torch.cat(outputs).numpy(), {"epochs": epochs}


def _on_device(tokens: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(tokens)).to(device)  # a copy, because the tokens are memory-mapped
