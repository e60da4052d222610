"""Finite scalar quantisation (Mentzer et al. 2024): each dimension is rounded to one of a few levels.

D dimensions, one level count each; a code is the number of a combination of levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

_ROOM = 1e-3  # the bound lies a little beyond the outermost levels, so that every level can be reached


class FSQ(nn.Module):
    """Rounds vectors to a fixed grid. It has no weights and needs no loss of its own.

    A vector of zeros is rounded to zeros for even and odd numbers of levels alike, so zero is a code like any
    other. An even number of levels is not symmetric: 8 of them take -1, -0.75, ... 0.75.

    Args:
        levels: how many values each dimension can take, at least 2.
    """

    reach: Tensor  # (D,) of the tanh to either side
    offset: Tensor  # (D,)
    steps: Tensor  # (D,) levels between 0 and -1
    weights: Tensor  # (D,) int64: what a level of a dimension adds to the code

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be numbers from 2, not {tuple(levels)}")
        self.levels = tuple(levels)
        counts = torch.tensor(self.levels)
        constants = {
            "reach": (counts - 1) * (1 + _ROOM) / 2,
            "offset": (counts + 1) % 2 / 2,
            "steps": (counts // 2).float(),
            "weights": torch.tensor([prod(self.levels[:place]) for place in range(len(self.levels))]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def num_codes(self) -> int:
        return prod(self.levels)

    def bound(self, z: Tensor) -> Tensor:
        """(..., D) of any size to the range of the values, not rounded yet; float32."""
        shift = torch.atanh(self.offset / self.reach)
        return (torch.tanh(z.float() + shift) * self.reach - self.offset) / self.steps

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Round vectors; the gradient passes the rounding as if it were not there.

        Args:
            z: (..., D).
        Returns:
            values: (..., D) float32 in [-1, 1].
            codes: (...) int64 in [0, num_codes).
        """
        bounded = self.bound(z)
        levels = (bounded.detach() * self.steps).round()  # (..., D), 0 in the middle
        values = levels / self.steps + (bounded - bounded.detach())  # in this order exactly the levels
        codes = ((levels + self.steps).long() * self.weights).sum(dim=-1)
        return values, codes

    def digits(self, codes: Tensor) -> Tensor:
        """(...) codes to (..., D) int64: the level of each dimension, counted from 0."""
        counts = torch.tensor(self.levels, device=codes.device)
        return codes.unsqueeze(-1) // self.weights % counts

    def decode(self, codes: Tensor) -> Tensor:
        """The values that codes stand for: (...) int64 to (..., D) float32."""
        return (self.digits(codes) - self.steps) / self.steps
