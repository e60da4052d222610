"""Clips of noise for a model, which two programs that compute the same encode alike.

C channels, T frames, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.models.spec import ModelSpec


def sample_clips(spec: ModelSpec, batch: int) -> Tensor:
    """Return (batch, C, T, H, W) float32: normalized `sample_pixels`."""
    return spec.pixels.normalize(sample_pixels(spec, batch))


def sample_pixels(spec: ModelSpec, batch: int) -> Tensor:
    """Return (batch, C, T, H, W) uint8 noise, the same at every call.

    Every token has its own strength. With uniform noise all tokens would be equally important up to rounding
    errors, in which two libraries differ. Half of the places, drawn for each clip, are still: they repeat the
    first slice. Tokens there are equally important, so the first ones in token order have to be kept.
    """
    generator, grid = torch.Generator().manual_seed(batch), spec.grid
    strength = torch.rand(batch, 1, grid.t, grid.h, grid.w, generator=generator)
    strength = F.interpolate(strength, size=(spec.frames, *spec.size))  # (batch, 1, T, H, W)
    noise = torch.rand(batch, spec.channels, spec.frames, *spec.size, generator=generator)
    pixels = (256 * strength * noise).to(torch.uint8)
    places = torch.rand(batch, grid.per_slice, generator=generator).argsort(dim=1) < grid.per_slice // 2
    still = F.interpolate(places.view(batch, 1, grid.h, grid.w).float(), size=spec.size).bool()
    repeated = pixels[:, :, : spec.model.tubelet[0]].repeat(1, 1, grid.t, 1, 1)
    return torch.where(still.unsqueeze(2), repeated, pixels)
