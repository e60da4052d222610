"""Stochastic depth (Huang et al. 2016): in training, a branch of a block is left out of some clips.

B batch, K tokens, D width, P branches with stochastic depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Scales a branch by 1 / keep, or by 0 in the clips that it is left out of.

    The rate as a number would be a constant of a compiled graph. Blocks with different rates share their
    graphs, because they read it from a tensor.

    Args:
        rate: the share of the clips that the branch is left out of, below 1.
    """

    keep: Tensor  # () float32: 1 - rate; not stored

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate
        self.register_buffer("keep", torch.tensor(1 - rate), persistent=False)
        self.noise: Tensor | None = None  # (B,) in [0, 1), see `drop_noise`; None: drawn by torch

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens (B, K, D) of each clip; in evaluation by 1."""
        if not self.training:
            return x
        noise = torch.rand(x.size(0), device=x.device) if self.noise is None else self.noise  # (B,)
        kept = (noise < self.keep).view(-1, 1, 1)
        return x * (kept / self.keep).to(x.dtype)


def drop_paths(model: nn.Module) -> list[DropPath]:
    """The branches of a model with stochastic depth."""
    return [module for module in model.modules() if isinstance(module, DropPath)]


@contextmanager
def drop_noise(paths: Sequence[DropPath], noise: Tensor) -> Iterator[None]:
    """Let `noise` (P, B) decide in the passes of the context which clips a branch is left out of."""
    for path, row in zip(paths, noise, strict=True):
        path.noise = row
    try:
        yield
    finally:
        for path in paths:
            path.noise = None
