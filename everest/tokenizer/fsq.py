"""Finite scalar quantization (Mentzer et al. 2024): each dimension is rounded to one of a few levels.

D dimensions, each with its number of levels; a code is the index of a combination of levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

# The bound is a little beyond the outermost levels, so that every level can be reached.
_MARGIN = 1e-3  # relative to the range of the levels
_MOST_MARGIN = 0.25  # in levels: from 0.5, a level outside of the range would be reached


class FSQ(nn.Module):
    """Rounds vectors to a fixed grid. It has no weights and needs no loss of its own.

    A zero vector is rounded to zeros for even and odd numbers of levels, so zero is an ordinary code. The
    levels of an even number are not symmetric: 8 levels are -1, -0.75, ... 0.75.

    Args:
        levels: the number of levels of each dimension, at least 2.
    """

    reach: Tensor  # (D,) of the tanh to either side
    offset: Tensor  # (D,)
    steps: Tensor  # (D,) levels between 0 and -1
    counts: Tensor  # (D,) int64: `levels`
    weights: Tensor  # (D,) int64: factor of a dimension's level in the code

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be numbers from 2, not {tuple(levels)}")
        self.levels = tuple(levels)
        self.num_codes = prod(self.levels)
        counts = torch.tensor(self.levels)
        constants = {
            "reach": torch.minimum((counts - 1) * (1 + _MARGIN) / 2, (counts - 1) / 2 + _MOST_MARGIN),
            "offset": (counts + 1) % 2 / 2,
            "steps": (counts // 2).float(),
            "counts": counts,
            "weights": torch.tensor([prod(self.levels[:dim]) for dim in range(len(self.levels))]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Map vectors (..., D) to the range of the values, before rounding: float32."""
        shift = torch.atanh(self.offset / self.reach)
        return (torch.tanh(z.float() + shift) * self.reach - self.offset) / self.steps

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Round vectors; the gradient passes through the rounding unchanged.

        Args:
            z: (..., D).
        Returns:
            values: (..., D) float32 in [-1, 1].
            codes: (...) int64 in [0, num_codes).
        """
        bounded = self.bound(z)
        levels = (bounded.detach() * self.steps).round()  # (..., D), 0 in the middle
        values = levels / self.steps + (bounded - bounded.detach())  # this order gives exactly the levels
        codes = ((levels + self.steps).long() * self.weights).sum(dim=-1)
        return values, codes

    def digits(self, codes: Tensor) -> Tensor:
        """Convert codes (...) on any device to the level of each dimension, from 0: (..., D) int64."""
        weights, counts = self.weights.to(codes.device), self.counts.to(codes.device)
        return codes.unsqueeze(-1) // weights % counts

    def decode(self, codes: Tensor) -> Tensor:
        """Convert codes (...) int64 to their values (..., D) float32."""
        return (self.digits(codes) - self.steps) / self.steps
