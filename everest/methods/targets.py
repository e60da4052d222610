"""What is predicted at the target tokens, and how far a prediction is from it.

B batch, K target tokens, C channels, t p q a tubelet's frames, rows and columns, P = t*p*q*C values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from everest.methods.grid import gather_patches
from everest.video.pixels import unnormalize


class TargetMaker(Protocol):
    """No nn.Module: what makes the targets stays out of optimiser, DDP and checkpoint."""

    @property
    def width(self) -> int:
        """P, the values predicted for one token."""
        ...

    @property
    def needs_truth(self) -> bool:
        """Whether `pixels` takes the mean and deviation of the true tubelets."""
        ...

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) float32 at the tokens `ids` (B, K) of the normalised clips (B, C, T, H, W)."""
        ...

    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, C, t, p, q) in [0, 1]: what the predictions (B, K, P) look like."""
        ...

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """The scalar that training makes small. `scored` (B, K) bool: the tokens that count."""
        ...


@dataclass(frozen=True, kw_only=True)
class PixelTargets:
    """RGB of the target tubelets.

    Args:
        normalize: True as VideoMAE and EVEREST, each channel of a tubelet by itself; "token" as ST-MAE, all
            values of a token together; False: pixels in [0, 1].
        frames: "half" as ST-MAE, which predicts one frame of each tubelet.
    """

    tubelet: tuple[int, int, int]
    normalize: bool | Literal["token"] = True
    frames: Literal["all", "half"] = "all"

    @property
    def width(self) -> int:
        t, p, q = self.tubelet
        return (t if self.frames == "all" else 1) * p * q * 3

    @property
    def needs_truth(self) -> bool:
        return bool(self.normalize)

    def values(self, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) in the order (frame, row, column, channel) of the released programs."""
        patches = self._asked(frames, ids)
        mean, deviation = self._moments(patches)
        return ((patches - mean) / deviation).movedim(2, -1).flatten(2)  # (B, K, t*p*q*C)

    def pixels(self, prediction: Tensor, frames: Tensor, ids: Tensor) -> Tensor:
        """(B, K, P) predictions to (B, K, C, t, p, q) pixels in [0, 1], a predicted frame in place of both.

        What was normalised gets back the mean and deviation of the true tubelet, which the model does not
        know: what is to be judged is the structure inside a tubelet, not its colour.
        """
        patches = self._asked(frames, ids)  # (B, K, C, t, p, q)
        mean, deviation = self._moments(patches)
        values = prediction.unflatten(2, (*patches.shape[3:], -1)).movedim(-1, 2)
        return (values * deviation + mean).clamp(0, 1).expand(-1, -1, -1, self.tubelet[0], -1, -1)

    def loss(self, prediction: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """Mean squared error over the scored tokens and their values, in float32."""
        error = (prediction.float() - values).square().mean(dim=-1)  # (B, K)
        return (error * scored).sum() / scored.sum()

    def _asked(self, frames: Tensor, ids: Tensor) -> Tensor:
        """The true pixels in [0, 1] of what is to be predicted: (B, K, C, t, p, q), t = 1 for half."""
        patches = unnormalize(gather_patches(frames.float(), ids, self.tubelet))
        if self.frames == "all":
            return patches
        # ST-MAE takes the frames linspace(0, T - 1, T / 2): the first of a tubelet, of the last one its last.
        t, p, q = self.tubelet
        slices = frames.size(2) // t
        number = ids // (frames.size(3) // p * (frames.size(4) // q))  # (B, K): the slice of each token
        offset = number * (t - 1) // max(slices - 1, 1)
        wanted = offset.view(*ids.shape, 1, 1, 1, 1).expand(-1, -1, patches.size(2), -1, p, q)
        return patches.gather(3, wanted)

    def _moments(self, patches: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What is subtracted from (B, K, C, t, p, q) and what it is divided by, in shapes that broadcast.

        The released programs differ in where they add 1e-6.
        """
        if not self.normalize:
            return 0.0, 1.0
        dims = (-4, -3, -2, -1) if self.normalize == "token" else (-3, -2, -1)
        mean = patches.mean(dim=dims, keepdim=True)
        together = math.prod([patches.size(dim) for dim in dims])  # values that have one mean
        # The standard deviation; torch.std takes several times as long on a CPU.
        deviation = torch.linalg.vector_norm(patches - mean, dim=dims, keepdim=True) / math.sqrt(together - 1)
        if self.normalize == "token":
            return mean, (deviation.square() + 1e-6).sqrt()
        return mean, deviation + 1e-6
