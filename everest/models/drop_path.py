"""Stochastic depth (Huang et al. 2016): in training, a branch of a block is left out of some clips.

B batch, K tokens, D width.
"""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor


class DropPath(TimmDropPath):
    """timm's stochastic depth, of which blocks with different rates share one compiled graph.

    The rate as a number would be a constant of the graph, so compiled code reads it from a tensor, and draws
    by itself. Other code computes and draws as timm does.

    Args:
        rate: the share of the clips that the branch is left out of, below 1.
    """

    keep: Tensor  # () float32: 1 - rate; not stored

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.register_buffer("keep", torch.tensor(1 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens (B, K, D) of each clip by 1 / keep or by 0; in evaluation by 1."""
        if not self.training:  # timm would compare the number
            return x
        if not torch.compiler.is_compiling():
            return super().forward(x)
        kept = torch.rand(x.size(0), 1, 1, device=x.device) < self.keep  # (B, 1, 1)
        return x * (kept / self.keep).to(x.dtype)
