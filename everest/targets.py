"""What is predicted at the target tokens, and how far a prediction is from it.

B batch, K target tokens, C channels, t p q a tubelet's frames, rows and columns, P = t*p*q*C values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from everest.pixels import unnormalise
from everest.tokens import gather_patches


class TargetMaker(Protocol):
    """No nn.Module: what makes the targets stays out of optimiser, DDP and checkpoint."""

    @property
    def width(self) -> int:
        """P, the values predicted for one token."""
        ...

    @property
    def normalised(self) -> bool:
        """Whether the values say nothing of a tubelet's own mean and deviation."""
        ...

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) float32 at the tokens `ids` (B, K) of the normalised clips (B, C, T, H, W)."""
        ...

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """The scalar that training makes small. `scored` (B, K) bool: the tokens that count."""
        ...


@dataclass(frozen=True, kw_only=True)
class PixelTargets:
    """RGB of the target tubelets, by default normalised per tubelet and channel (VideoMAE, EVEREST)."""

    tubelet: tuple[int, int, int]
    normalize: bool = True

    @property
    def width(self) -> int:
        t, p, q = self.tubelet
        return t * p * q * 3

    @property
    def normalised(self) -> bool:
        return self.normalize

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) in the order (frame, row, column, channel) of the released programs.

        Each channel of a tubelet is normalised by the mean and unbiased deviation over its t*p*q positions;
        1e-6 is added to the deviation, not to the variance.
        """
        patches = unnormalise(
            gather_patches(frames.float(), ids, self.tubelet)
        )  # (B, K, C, t, p, q) in [0, 1]
        if self.normalize:
            positions = (-3, -2, -1)
            deviation = patches.std(dim=positions, keepdim=True) + 1e-6
            patches = (patches - patches.mean(dim=positions, keepdim=True)) / deviation
        return patches.movedim(2, -1).flatten(2)  # (B, K, t*p*q*C)

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """Mean squared error over the scored tokens and their values, in float32."""
        error = (prediction.float() - values).square().mean(dim=-1)  # (B, K)
        return (error * scored).sum() / scored.sum()
