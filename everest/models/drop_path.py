"""Stochastic depth (Huang et al. 2016): clips leave out branches of a model's blocks in training.

B clips of a pass or a step, K tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Scales a branch by 1 / (1 - rate), or by 0 in the clips that it is left out of.

    The rate as a number would be a constant of a compiled graph. Blocks with different rates share their
    graphs, because they read it from a tensor.

    Args:
        rate: the share of the clips that the branch is left out of, below 1.
    """

    keep_prob: Tensor  # () float32: 1 - rate; not stored

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep_prob", torch.tensor(1 - rate), persistent=False)
        self.uniform: Tensor | None = None  # (B,) in [0, 1), of a pass; None: drawn by torch

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens (B, K, D) of each clip; in evaluation by 1."""
        if not self.training:
            return x
        uniform = torch.rand(x.size(0), device=x.device) if self.uniform is None else self.uniform  # (B,)
        is_computed = (uniform < self.keep_prob).view(-1, 1, 1)
        return x * (is_computed / self.keep_prob).to(x.dtype)


class DroppedPaths:
    """Which of the `clips` of a step leave out which branches: the same on any number of processes."""

    def __init__(self, model: nn.Module, seed: int, *, clips: int, device: torch.device) -> None:
        self._paths = [module for module in model.modules() if isinstance(module, DropPath)]
        generator = torch.Generator(device).manual_seed(seed)
        self._uniform = torch.rand(len(self._paths), clips, device=device, generator=generator)  # (paths, B)

    def use(self, clips: slice) -> None:
        """Give the modules the numbers of the clips of a pass."""
        for path, uniform in zip(self._paths, self._uniform, strict=True):
            path.uniform = uniform[clips]

    def clear(self) -> None:
        """End the step: the modules draw numbers of their own again."""
        for path in self._paths:
            path.uniform = None
