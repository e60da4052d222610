"""The random numbers of a clip in pre-training: what each of them is for.

B batch, N tokens of all candidate slices, S candidate slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from everest.methods.camera import NUMBERS
from everest.methods.grid import TokenGrid


class ClipNoise(NamedTuple):
    """Random numbers of clips, uniform in [0, 1)."""

    tokens: Tensor  # (B, N): which tokens are visible and which are predicted
    slices: Tensor  # (B, S): which slices make the clip; (B, 0) without frame selection
    camera: Tensor  # (B, NUMBERS): the simulated motion of the camera; (B, 0) without this task


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseLayout:
    """How many random numbers a clip has for each purpose: the loader draws them, the model splits them."""

    tokens: int
    slices: int
    camera: int

    @classmethod
    def of(cls, grid: TokenGrid, candidates: TokenGrid, *, camera: float) -> Self:
        """The layout for clips of `grid`, whose slices are drawn from `candidates` if these are more.

        Args:
            camera: the weight of the camera task in the loss; 0: without it.
        """
        slices = candidates.t if candidates != grid else 0
        return cls(tokens=candidates.num_tokens, slices=slices, camera=NUMBERS if camera else 0)

    @property
    def total(self) -> int:
        """The random numbers of a clip."""
        return self.tokens + self.slices + self.camera

    def split(self, noise: Tensor) -> ClipNoise:
        """Split the numbers (B, total) of clips; ValueError if a clip has more or fewer."""
        if noise.size(1) != self.total:
            raise ValueError(
                f"noise: {noise.size(1)} numbers a clip, not {self.total} ({self.tokens} for tokens, "
                f"{self.slices} for slices, {self.camera} for the camera)"
            )
        return ClipNoise(*noise.split([self.tokens, self.slices, self.camera], dim=1))
