"""Normalization of frames by the mean and the standard deviation (std) of each channel, on any device.

C channels: red, green, blue, or the luma of gray clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from pydantic import ConfigDict
from torch import Tensor

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)  # RGB, as in the official code of all five methods
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
MIN_STD: Final = 1e-6  # heuristic: float32 can divide by it
MAX_STD: Final = 1e6  # heuristic; the std of values in [0, 1] is at most 0.5


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """Mean and std of each channel of pixels in [0, 1]. Models take frames normalized by these statistics.

    Raises:
        ValueError: there are not as many stds as means, or a value is out of its range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds, one of each for a channel")
        for name, values, least, most in (("mean", self.mean, 0, 1), ("std", self.std, MIN_STD, MAX_STD)):
            if not all(least <= value <= most for value in values):
                raise ValueError(f"a {name} must be from {least:g} to {most:g}, not {list(values)}")

    @property
    def channels(self) -> int:
        """The number C of channels."""
        return len(self.mean)

    def normalize(self, clip: Tensor) -> Tensor:
        """Normalize a clip: (..., C, T, H, W) uint8 to float32.

        Raises:
            TypeError: the clip is not a tensor, for example a NumPy array.
            ValueError: the clip is not uint8, for example because it is normalized already, or has another
                number of channels.
        """
        if not isinstance(clip, Tensor):
            raise TypeError(
                f"expected a torch tensor, got {type(clip).__name__}; torch.from_numpy makes one of an array"
            )
        if clip.dtype != torch.uint8 or clip.dim() < 4 or clip.size(-4) != self.channels:
            raise ValueError(
                f"expected uint8 frames (..., {self.channels}, T, H, W), got {clip.dtype} "
                f"{tuple(clip.shape)}; clips of a model are normalized by its `pixels`"
            )
        return in_unit_range(clip).sub_(_per_channel(self.mean, clip)).div_(_per_channel(self.std, clip))

    def normalized(self, frames: Tensor) -> Tensor:
        """`normalize` clips or tubelets (..., C, t, p, q) of bytes; return normalized frames unchanged."""
        return self.normalize(frames) if frames.dtype == torch.uint8 else frames

    def normalize_unit_range(self, frames: Tensor) -> Tensor:
        """Normalize (..., C, T, H, W) float32 in [0, 1] as `normalize` does, with gradients."""
        return (frames - _per_channel(self.mean, frames)) / _per_channel(self.std, frames)

    def unnormalize(self, frames: Tensor) -> Tensor:
        """Invert `normalize`, without rounding: (..., C, T, H, W) float32 in [0, 1]."""
        return frames * _per_channel(self.std, frames) + _per_channel(self.mean, frames)

    def to_unit_range(self, frames: Tensor) -> Tensor:
        """Scale bytes or normalized frames (..., C, T, H, W) to float32 in [0, 1]."""
        return in_unit_range(frames) if frames.dtype == torch.uint8 else self.unnormalize(frames.float())

    def byte_changes_weight(self, weight: Tensor) -> Tensor:
        """Rescale a weight (..., C, t, p, q) for normalized frames to one for differences of bytes."""
        return weight / (255 * _per_channel(self.std, weight))


IMAGENET: Final = PixelStatistics(mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Heuristic: ImageNet's values with the weights of luma (ITU-R 601), rounded. For the std, this assumes
# that the colors vary together.
IMAGENET_LUMA: Final = PixelStatistics(mean=(0.459,), std=(0.226,))
STATISTICS_OF_CHANNELS: Final = {3: IMAGENET, 1: IMAGENET_LUMA}  # statistics by number of channels


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """(C, 1, 1, 1) float32, filled on the device: a copy to a GPU would wait for it."""
    options = {"dtype": torch.float32, "device": like.device}
    return torch.stack([torch.full((1, 1, 1), value, **options) for value in values])


def normalize(clip: Tensor) -> Tensor:
    """Normalize a clip by ImageNet's mean and std: (..., 3, T, H, W) uint8 to float32.

    Raises:
        TypeError, ValueError: see `PixelStatistics.normalize`.
    """
    return IMAGENET.normalize(clip)


def in_unit_range(clip: Tensor) -> Tensor:
    """Scale (...) uint8 to float32 in [0, 1]."""
    return clip.float().div_(255)
