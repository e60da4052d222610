"""A target that no model can learn, to see that a broken pre-training run is noticed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from everest.methods.targets import PixelTargets, Target


@dataclass(frozen=True, kw_only=True)
class OtherClips(Target):
    """The pixels of the next clip of the batch: nothing visible is related to them."""

    normalize: bool = True  # as pretrain.target.normalize

    def width(self, tubelet: tuple[int, int, int]) -> int:
        """The values of a color tubelet."""
        return PixelTargets(tubelet=tubelet).width

    def values(self, frames: Tensor, ids: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
        """(B, K, P) at the places `ids` (B, K) of other clips."""
        return PixelTargets(tubelet=tubelet, normalize=self.normalize).values(frames.roll(1, dims=0), ids)
