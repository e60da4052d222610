"""The positions of tokens: added to them, computed or learned, or by which queries and keys are rotated.

B batch, N tokens of a clip, K selected tokens, D width, t h w the grid's time indices, rows and columns, E
channels of a head, R channels of a coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.model_settings import rotary_channels
from everest.config.values import Positions, Rotary
from everest.methods.grid import TokenGrid


class FixedPositions(nn.Module):
    """Computed positions. The table is not stored, so that weights load into a model of any clip.

    Args:
        trained: the grid that interpolated positions were computed for.
    """

    table: Tensor  # (N, D)

    def __init__(self, positions: Positions, trained: TokenGrid, grid: TokenGrid, width: int) -> None:
        super().__init__()
        table = position_table(positions, trained, width)
        spatial = _over_space(table.unflatten(0, (trained.t, -1)), trained, grid)  # (t, h'*w', D)
        table = _over_time(spatial.transpose(0, 1), grid.t).transpose(0, 1).flatten(0, 1)  # (N, D)
        self.register_buffer("table", table, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The positions (B, K, D) of the tokens `ids` (B, K)."""
        return self.table[ids]


class LearnedPositions(nn.Module):
    """Learned positions (ST-MAE, Feichtenhofer et al. 2022): a vector for the position plus one for the time.

    They are weights for one grid; `fit_learned_positions` fits them to another one.

    Args:
        class_token: whether the class token has a learned position, too.
    """

    def __init__(self, grid: TokenGrid, width: int, *, class_token: bool = False) -> None:
        super().__init__()
        self.spatial = learned_vectors(grid.num_positions, width)  # (1, h*w, D)
        self.temporal = learned_vectors(grid.t, width)  # (1, t, D)
        self.class_token = learned_vectors(1, width) if class_token else None  # (1, 1, D)

    def forward(self, ids: Tensor) -> Tensor:
        """The positions (B, K, D) of the tokens `ids` (B, K)."""
        num_positions = self.spatial.size(1)
        return self.spatial[0, ids % num_positions] + self.temporal[0, ids // num_positions]


def learned_vectors(count: int, width: int) -> nn.Parameter:
    """New learned vectors (1, count, D), with the standard deviation of a class token."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02))


ROTARY_BASE: Final = 10000.0  # V-JEPA 2, EVA-02, PE: the lowest rate is nearly its inverse
LOWER_ROTARY_BASE: Final = 100.0  # DINOv3, RoPE-ViT: as few rows and columns need


class Rotation(NamedTuple):
    """The cosine and the sine of the angle of each channel, 1 and 0 where nothing is rotated."""

    cos: Tensor  # (B, 1, K, E)
    sin: Tensor  # (B, 1, K, E)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (B, heads, K, E); for the last L tokens (B, heads, L, E)."""
        cos, sin = (angle[:, :, angle.size(2) - x.size(2) :] for angle in self)  # (B, 1, L, E) each
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, heads, K, E / 2) each
        crossed = torch.stack([-second, first], dim=-1).flatten(-2)
        return (x * cos + crossed * sin).to(x.dtype)  # in the precision of the angles


class RotaryPositions(nn.Module):
    """Computed angles by which the channels of a head are rotated, for each token of a grid.

    For a video, as in V-JEPA 2 (Assran et al. 2025), the time index rotates the first R channels (R is even),
    the row the next R, and the column the next R; the others are not rotated. Channels 2i and 2i + 1 are the
    coordinates of a point. V-JEPA 2 was trained with the angle of each channel's number modulo R / 2, so the
    two have different angles, unlike in other rotary positions.

    For an image model (timm has weights of 21 EVA-02, 17 DINOv3, 14 PE and 6 RoPE-ViT models with rotations
    along the axes), the row rotates half of the channels, the column the other half. Channels 2i and 2i + 1
    are a point, and rotated by one angle: coordinate * base ** -(i / (E / 4)). Other layouts of channels get
    this order in everest.converters.timm_images.

    Args:
        rotary: `none`: of a video; else the coordinates of an image model. `eva02:N` (Fang et al. 2024):
            from 0, scaled so that the frame is N positions high and wide; `pe:N` (Bolya et al. 2025): the
            same, from 1 before scaling; `rope-vit` (Heo et al. 2024): from 0, not scaled; `dinov3` (Simeoni
            et al. 2025): from -2 pi to 2 pi at the borders.
    """

    cos: Tensor  # (N, E)
    sin: Tensor  # (N, E)

    def __init__(self, grid: TokenGrid, head_width: int, rotary: Rotary = "none") -> None:
        super().__init__()
        if rotary == "none":
            angles = _video_angles(grid, head_width)
        else:
            angles = _image_angles(grid, head_width, rotary)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, ids: Tensor) -> Rotation:
        """The rotation of the tokens `ids` (B, K)."""
        return Rotation(self.cos[ids].unsqueeze(1), self.sin[ids].unsqueeze(1))


def _video_angles(grid: TokenGrid, head_width: int) -> Tensor:
    """The angles (N, E) of V-JEPA 2 in float64: R channels for time index, row and column each."""
    channels = rotary_channels(head_width)  # R
    rates = ROTARY_BASE ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    coordinates = torch.cartesian_prod(*map(torch.arange, (grid.t, grid.h, grid.w)))  # (N, 3)
    angles = (coordinates.unsqueeze(2) * rates).repeat(1, 1, 2).flatten(1)  # (N, 3 * R)
    return F.pad(angles, (0, head_width - 3 * channels))  # (N, E)


def _image_angles(grid: TokenGrid, head_width: int, rotary: Rotary) -> Tensor:
    """The angles (N, E) of an image model in float64, the same at every time index."""
    base = LOWER_ROTARY_BASE if rotary in ("dinov3", "rope-vit") else ROTARY_BASE
    rates = base ** -(torch.arange(head_width // 4, dtype=torch.float64) / (head_width // 4))
    family, _, extent = rotary.partition(":")
    sides = []  # the coordinates of the rows, then those of the columns
    for count in (grid.h, grid.w):
        number = torch.arange(count, dtype=torch.float64)
        if family == "dinov3":
            sides.append(4 * math.pi * ((number + 0.5) / count - 0.5))
        else:
            sides.append((number + (family == "pe")) * (int(extent) / count if extent else 1))
    angles = (torch.cartesian_prod(*sides).unsqueeze(2) * rates).flatten(1)  # (h*w, E / 2)
    return angles.repeat_interleave(2, dim=1).repeat(grid.t, 1)  # (N, E)


TokenPositions = FixedPositions | LearnedPositions | RotaryPositions


def add_positions(tokens: Tensor, positions: TokenPositions, ids: Tensor) -> Tensor:
    """Add positions to the tokens `ids` (B, K), given as (B, K, D) or one for all, (1, 1, D): (B, K, D).

    Under autocast tokens have a lower precision than positions. The result has the precision of the
    positions, even if they are rotary, so that nothing is added.
    """
    if isinstance(positions, RotaryPositions):
        return tokens.expand(*ids.shape, -1).to(torch.promote_types(tokens.dtype, positions.cos.dtype))
    return tokens + positions(ids)


def rotation_of(positions: TokenPositions, ids: Tensor) -> Rotation | None:
    """The rotation of the tokens `ids` (B, K), if positions are rotary."""
    return positions(ids) if isinstance(positions, RotaryPositions) else None


SPATIAL: Final = "position.spatial"  # the ends of the names of learned positions
TEMPORAL: Final = "position.temporal"


def fit_learned_positions(tensors: Mapping[str, Tensor], old: TokenGrid, new: TokenGrid) -> dict[str, Tensor]:
    """Weights of a model for clips of the grid `old`, with their learned positions fitted to `new`.

    They are interpolated linearly in time and bicubically in space (as in DeiT), both with
    `align_corners=False`: the ends of the clip and the borders of the frame stay where they are.
    """
    fitted = dict(tensors)
    for name, tensor in tensors.items():  # learned positions are (1, t or h*w, D)
        if name.endswith(TEMPORAL):
            fitted[name] = _over_time(tensor, new.t)
        elif name.endswith(SPATIAL):
            fitted[name] = _over_space(tensor, old, new)
    return fitted


def _over_time(table: Tensor, length: int) -> Tensor:
    """Interpolate (B, t, D) to (B, length, D)."""
    return table if table.size(1) == length else F.interpolate(table.mT, size=length, mode="linear").mT


def _over_space(table: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor:
    """Interpolate (B, h*w, D) to (B, h'*w', D)."""
    if (new.h, new.w) == (old.h, old.w):
        return table
    spatial = table.mT.unflatten(2, (old.h, old.w))  # (B, D, h, w)
    return F.interpolate(spatial, size=(new.h, new.w), mode="bicubic").flatten(2).mT


INTERPOLATED: Final = "interpolated-"  # the beginning of the names of positions that are interpolated


def position_table(positions: Positions, grid: TokenGrid, width: int) -> Tensor:
    """The table (N, D) float32 of computed positions, which is added to the tokens of a grid.

    `flat`: sine and cosine of the flat token number alternate over the channels. As in the official code,
    time, height and width are not separated. `separable`: the time index in a quarter of the channels, then
    the column, then the row, as in MVD (Wang et al. 2023) and MAE's spatial half; for any number of time
    indices.

    Angles are float64: they reach thousands of radians at 128 frames.
    """
    if positions.removeprefix(INTERPOLATED) == "flat":
        number = torch.arange(grid.num_tokens, dtype=torch.float64).unsqueeze(1)  # (N, 1)
        pair = torch.arange((width + 1) // 2, dtype=torch.float64)  # (D/2,) of channels
        angle = number / torch.pow(10000.0, 2 * pair / width)  # (N, D/2)
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width].float()

    def sines(length: int, channels: int) -> Tensor:
        """(length, channels): all sines, then all cosines."""
        rates = torch.arange(channels // 2, dtype=torch.float64) / (channels / 2)
        angle = torch.arange(length).double().unsqueeze(1) / torch.pow(10000.0, rates)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    half = (width - width // 4) // 2
    time, column, row = sines(grid.t, width // 4), sines(grid.w, half), sines(grid.h, half)
    coordinates = (time[:, None, None], column[None, None], row[None, :, None])
    shape = (grid.t, grid.h, grid.w, -1)
    return torch.cat([each.expand(shape) for each in coordinates], dim=-1).flatten(0, 2).float()
