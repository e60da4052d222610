"""Normalization of frames: ImageNet mean and standard deviation, on any device."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)  # RGB, as in the released programs of all five methods
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """(3, 1, 1, 1) float32, filled on the device: a copy to a GPU would wait for it."""
    options = {"dtype": torch.float32, "device": like.device}
    return torch.stack([torch.full((1, 1, 1), value, **options) for value in values])


def normalize(clip: Tensor) -> Tensor:
    """Normalize a clip by ImageNet's mean and std: (..., 3, T, H, W) uint8 to float32.

    Raises:
        TypeError: not a tensor, for example a NumPy array.
        ValueError: a type other than uint8, for example frames that are normalized already.
    """
    if not isinstance(clip, Tensor):
        raise TypeError(
            f"expected a torch tensor, got {type(clip).__name__}; torch.from_numpy makes one of an array"
        )
    if clip.dtype != torch.uint8:
        raise ValueError(f"expected uint8 frames, got {clip.dtype}")
    return in_unit_range(clip).sub_(_per_channel(IMAGENET_MEAN, clip)).div_(_per_channel(IMAGENET_STD, clip))


def normalized(frames: Tensor) -> Tensor:
    """`normalize` clips or tubelets (..., 3, t, p, q) of bytes; return normalized ones as they are."""
    return normalize(frames) if frames.dtype == torch.uint8 else frames


def in_unit_range(clip: Tensor) -> Tensor:
    """Scale (...) uint8 to float32 in [0, 1]."""
    return clip.float().div_(255)


def normalize_unit_range(frames: Tensor) -> Tensor:
    """Normalize (..., 3, T, H, W) float32 in [0, 1] as `normalize` does, with gradients."""
    return (frames - _per_channel(IMAGENET_MEAN, frames)) / _per_channel(IMAGENET_STD, frames)


def to_unit_range(frames: Tensor) -> Tensor:
    """Scale bytes or normalized frames (..., 3, T, H, W) to float32 in [0, 1]."""
    return in_unit_range(frames) if frames.dtype == torch.uint8 else unnormalize(frames.float())


def byte_changes_weight(weight: Tensor) -> Tensor:
    """The weight (..., 3, t, p, q) for differences of bytes instead of differences of normalized frames."""
    return weight / (255 * _per_channel(IMAGENET_STD, weight))


def unnormalize(frames: Tensor) -> Tensor:
    """Invert `normalize`, without rounding: (..., 3, T, H, W) float32 in [0, 1]."""
    return frames * _per_channel(IMAGENET_STD, frames) + _per_channel(IMAGENET_MEAN, frames)


normalise = normalize  # the first spelling, which programs may use
