"""Rotary positions: queries and keys are turned by the slice, the row and the column of their token.

V-JEPA 2 (Assran et al. 2025) has the same ones, so its weights compute the same here. Each coordinate has an
even number R of a head's E channels; the channels that are left over are not turned.

Image models turn by row and column only, each in half of the channels, and differ in their coordinates
(`place_angles`).

B batch, N tokens, K selected tokens, E channels of a head, R channels of a coordinate.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.sizes import rotary_channels
from everest.config.values import Rotary
from everest.methods.grid import TokenGrid

BASE: Final = 10000.0  # V-JEPA 2, EVA-02, PE: the lowest rate is nearly its inverse
LOWER_BASE: Final = 100.0  # DINOv3, RoPE-ViT: as few rows and columns need


class Rotation(NamedTuple):
    """The cosine and the sine of the angle of each channel, 1 and 0 where nothing is turned."""

    cos: Tensor  # (B, 1, K, E)
    sin: Tensor  # (B, 1, K, E)

    def turn(self, x: Tensor) -> Tensor:
        """Turn queries or keys (B, heads, K, E); for the last L tokens (B, heads, L, E)."""
        cos, sin = (part[:, :, part.size(2) - x.size(2) :] for part in self)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, heads, K, E / 2) each
        crossed = torch.stack([-second, first], dim=-1).flatten(-2)
        return (x * cos + crossed * sin).to(x.dtype)  # in the precision of the angles

    def after_prefix(self, tokens: int) -> Rotation:
        """The rotation of tokens (B, tokens + K) whose first ones are not turned."""
        front = (0, 0, tokens, 0)
        return Rotation(F.pad(self.cos, front, value=1.0), F.pad(self.sin, front))


class RotaryPositions(nn.Module):
    """Rotations of the tokens of a grid. They are computed, so that weights load into a model of any clip.

    Args:
        places: of an image model, by row and column only; none: by slice, row and column.
    """

    cos: Tensor  # (N, E)
    sin: Tensor  # (N, E)

    def __init__(self, grid: TokenGrid, head_width: int, places: Rotary = "none") -> None:
        super().__init__()
        if places == "none":
            angle = rotary_angles(grid, head_width)
        else:
            angle = place_angles(grid, head_width, places)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, ids: Tensor) -> Rotation:
        """The rotation of the tokens `ids` (B, K)."""
        return Rotation(self.cos[ids].unsqueeze(1), self.sin[ids].unsqueeze(1))


def rotary_angles(grid: TokenGrid, head_width: int) -> Tensor:
    """The angles (N, E) float64: R channels for the slice, then for the row, for the column, zeros.

    Channels 2i and 2i + 1 are the coordinates of a point, but each has the angle of its own number modulo
    R / 2. So V-JEPA 2 was trained: a pair is not turned by one angle as in other rotary positions.
    """
    channels = rotary_channels(head_width)  # R
    rates = BASE ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    ids = torch.arange(grid.num_tokens)
    coordinates = (ids // grid.per_slice, ids // grid.w % grid.h, ids % grid.w)
    angles = [(coordinate.unsqueeze(1) * rates).repeat(1, 2) for coordinate in coordinates]  # (N, R) each
    return F.pad(torch.cat(angles, dim=1), (0, head_width - 3 * channels))


def place_angles(grid: TokenGrid, head_width: int, rotary: Rotary) -> Tensor:
    """The angles (N, E) float64 of an image model: half of the channels for the row, half for the column.

    Channels 2i and 2i + 1 are a point, and turned by one angle: coordinate * base ** -(i / (E / 4)).
    everest.foreign.timm_tensors puts the channels of other layouts into this order.

    Args:
        rotary: the coordinates. `eva02:N` (Fang et al. 2024): from 0, scaled so that the frame is N places
            high and wide; `pe:N` (Bolya et al. 2025): the same, from 1 before scaling; `rope-vit` (Heo et
            al. 2024): from 0, not scaled; `dinov3` (Simeoni et al. 2025): from -2 pi to 2 pi at the borders.
    """
    rates = (LOWER_BASE if rotary in ("dinov3", "rope-vit") else BASE) ** -(
        torch.arange(head_width // 4, dtype=torch.float64) / (head_width // 4)
    )  # (E / 4,)
    ids = torch.arange(grid.num_tokens)
    rows = _coordinates(grid.h, rotary)[ids // grid.w % grid.h]  # (N,)
    columns = _coordinates(grid.w, rotary)[ids % grid.w]
    angles = torch.cat([part.unsqueeze(1) * rates for part in (rows, columns)], dim=1)  # (N, E / 2)
    return angles.repeat_interleave(2, dim=1)


def _coordinates(places: int, rotary: Rotary) -> Tensor:
    """The coordinates (places,) float64 of the places of a row or column."""
    number, (kind, _, extent) = torch.arange(places, dtype=torch.float64), rotary.partition(":")
    if kind == "dinov3":
        return 4 * math.pi * ((number + 0.5) / places - 0.5)
    return (number + (kind == "pe")) * (int(extent) / places if extent else 1)
