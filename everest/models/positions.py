"""The positions of tokens: added to them, computed or learned, or by which queries and keys are turned.

B batch, N tokens of a clip, K selected tokens, D width, t h w the grid's slices, rows and columns, E channels
of a head, R channels of a coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.model import rotary_channels
from everest.config.values import Positions, Rotary
from everest.methods.grid import TokenGrid


class FixedPositions(nn.Module):
    """Computed positions. The table is not stored, so that weights load into a model of any clip."""

    table: Tensor  # (N, D)

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The positions (B, K, D) of the tokens `ids` (B, K)."""
        return self.table[ids]


class LearnedPositions(nn.Module):
    """Learned positions of space and time (ST-MAE, Feichtenhofer et al. 2022): one vector of each are added.

    They are weights of one grid; `interpolated` fits them to another one.

    Args:
        class_token: whether the class token has a learned position, too.
    """

    def __init__(self, grid: TokenGrid, width: int, *, class_token: bool = False) -> None:
        super().__init__()
        self.spatial = learned_rows(grid.per_slice, width)  # (1, h*w, D)
        self.temporal = learned_rows(grid.t, width)  # (1, t, D)
        self.class_token = learned_rows(1, width) if class_token else None  # (1, 1, D)

    def forward(self, ids: Tensor) -> Tensor:
        """The positions (B, K, D) of the tokens `ids` (B, K)."""
        per_slice = self.spatial.size(1)
        return self.spatial[0, ids % per_slice] + self.temporal[0, ids // per_slice]


def learned_rows(rows: int, width: int) -> nn.Parameter:
    """New learned vectors (1, rows, D), with the standard deviation of a class token."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, width), std=0.02))


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


class RotaryPositions(nn.Module):
    """Rotations of the tokens of a grid, computed. V-JEPA 2 (Assran et al. 2025) has the same ones.

    Each coordinate has an even number R of a head's channels; the channels that are left over are not turned.
    Image models turn by row and column only, each in half of the channels (`place_angles`).

    Args:
        places: of an image model, by row and column only; none: by slice, row and column.
    """

    cos: Tensor  # (N, E)
    sin: Tensor  # (N, E)

    def __init__(self, grid: TokenGrid, head_width: int, places: Rotary = "none") -> None:
        super().__init__()
        is_video = places == "none"
        angle = rotary_angles(grid, head_width) if is_video else place_angles(grid, head_width, places)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, ids: Tensor) -> Rotation:
        """The rotation of the tokens `ids` (B, K)."""
        return Rotation(self.cos[ids].unsqueeze(1), self.sin[ids].unsqueeze(1))


TokenPositions = FixedPositions | LearnedPositions | RotaryPositions


def add_positions(tokens: Tensor, positions: TokenPositions, ids: Tensor) -> Tensor:
    """Add positions to the tokens `ids` (B, K), given as (B, K, D) or one for all, (1, 1, D): (B, K, D).

    Under autocast tokens have a lower precision than positions. The sum has that of the positions, and so
    have tokens with rotary positions, to which nothing is added.
    """
    if isinstance(positions, RotaryPositions):
        return tokens.expand(*ids.shape, -1).to(torch.promote_types(tokens.dtype, positions.cos.dtype))
    return tokens + positions(ids)


def rotation_of(positions: TokenPositions, ids: Tensor) -> Rotation | None:
    """The rotation of the tokens `ids` (B, K), if positions are rotary."""
    return positions(ids) if isinstance(positions, RotaryPositions) else None


SPATIAL: Final = "position.spatial"  # the ends of the names of learned positions
TEMPORAL: Final = "position.temporal"


def interpolated(tensors: Mapping[str, Tensor], old: TokenGrid, new: TokenGrid) -> dict[str, Tensor]:
    """Weights of a model for clips of the grid `old`, with their learned positions fitted to `new`.

    Slices are interpolated linearly and places bicubically (as in DeiT), both with `align_corners=False`: the
    ends of the clip and the borders of the frame stay where they are.
    """
    fitted = dict(tensors)
    for name, tensor in tensors.items():  # (1, rows, D)
        if name.endswith(TEMPORAL):
            fitted[name] = _over_time(tensor, new.t)
        elif name.endswith(SPATIAL):
            fitted[name] = _over_places(tensor, old, new)
    return fitted


def interpolated_table(table: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor:
    """The table (N, D) of the grid `old` for `new`, (N', D), interpolated as learned positions are."""
    slices = _over_places(table.unflatten(0, (old.t, old.per_slice)), old, new)  # (t, h'*w', D)
    return _over_time(slices.transpose(0, 1), new.t).transpose(0, 1).flatten(0, 1)


def _over_time(rows: Tensor, slices: int) -> Tensor:
    """Interpolate (B, t, D) to (B, slices, D)."""
    return rows if rows.size(1) == slices else F.interpolate(rows.mT, size=slices, mode="linear").mT


def _over_places(rows: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor:
    """Interpolate (B, h*w, D) to (B, h'*w', D)."""
    if (new.h, new.w) == (old.h, old.w):
        return rows
    places = rows.mT.unflatten(2, (old.h, old.w))  # (B, D, h, w)
    return F.interpolate(places, size=(new.h, new.w), mode="bicubic").flatten(2).mT


ComputedPositions = Literal["flat", "separable"]
INTERPOLATED: Final[dict[Positions, ComputedPositions]] = {
    "interpolated-flat": "flat",
    "interpolated-separable": "separable",
}


def position_table(positions: Positions, grid: TokenGrid, width: int) -> Tensor:
    """The table (N, D) float32 of computed positions, which is added to the tokens of a grid."""
    if INTERPOLATED.get(positions, positions) == "flat":
        return sinusoid_positions(grid.num_tokens, width)
    return separable_positions(grid, width)


def sinusoid_positions(num_tokens: int, width: int) -> Tensor:
    """The table (N, D) float32 of sine and cosine of the flat token number, alternating over the channels.

    As in the released programs, time, height and width are not separated, and the angles are float64: they
    reach thousands of radians at 128 frames.
    """
    position = torch.arange(num_tokens, dtype=torch.float64).unsqueeze(1)  # (N, 1)
    pair = torch.arange((width + 1) // 2, dtype=torch.float64)  # (D/2,) of channels
    angle = position / torch.pow(10000.0, 2 * pair / width)  # (N, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width].float()


def separable_positions(grid: TokenGrid, width: int) -> Tensor:
    """The table (N, D) float32 with the slice in a quarter of the channels, then the column, then the row.

    It is the table of MVD (Wang et al. 2023) and of MAE's spatial half, and extends to any number of slices.
    """
    time = _sines(torch.arange(grid.t), width // 4)  # (t, D/4)
    half = (width - width // 4) // 2
    column, row = _sines(torch.arange(grid.w), half), _sines(torch.arange(grid.h), half)
    shape = (grid.t, grid.h, grid.w, -1)
    parts = (time[:, None, None], column[None, None], row[None, :, None])
    return torch.cat([part.expand(shape) for part in parts], dim=-1).flatten(0, 2).float()


def _sines(coordinates: Tensor, width: int) -> Tensor:
    """(coordinates, width) float64: all sines, then all cosines."""
    rates = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angle = coordinates.double().unsqueeze(1) / torch.pow(10000.0, rates)  # (coordinates, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def rotary_angles(grid: TokenGrid, head_width: int) -> Tensor:
    """The angles (N, E) float64: R channels for the slice, then for the row, for the column, zeros.

    Channels 2i and 2i + 1 are the coordinates of a point, but each has the angle of its own number modulo
    R / 2. So V-JEPA 2 was trained: a pair is not turned by one angle as in other rotary positions.
    """
    channels = rotary_channels(head_width)  # R
    rates = BASE ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    coordinates = torch.cartesian_prod(*(torch.arange(side) for side in (grid.t, grid.h, grid.w)))  # (N, 3)
    angles = (coordinates.unsqueeze(2) * rates).repeat(1, 1, 2)  # (N, 3, R)
    return F.pad(angles.flatten(1), (0, head_width - 3 * channels))


def place_angles(grid: TokenGrid, head_width: int, rotary: Rotary) -> Tensor:
    """The angles (N, E) float64 of an image model: half of the channels for the row, half for the column.

    Channels 2i and 2i + 1 are a point, and turned by one angle: coordinate * base ** -(i / (E / 4)).
    everest.foreign.timm_images puts the channels of other layouts into this order.

    Args:
        rotary: the coordinates. `eva02:N` (Fang et al. 2024): from 0, scaled so that the frame is N places
            high and wide; `pe:N` (Bolya et al. 2025): the same, from 1 before scaling; `rope-vit` (Heo et
            al. 2024): from 0, not scaled; `dinov3` (Simeoni et al. 2025): from -2 pi to 2 pi at the borders.
    """
    rates = (LOWER_BASE if rotary in ("dinov3", "rope-vit") else BASE) ** -(
        torch.arange(head_width // 4, dtype=torch.float64) / (head_width // 4)
    )  # (E / 4,)
    places = torch.cartesian_prod(_coordinates(grid.h, rotary), _coordinates(grid.w, rotary))  # (h*w, 2)
    angles = (places.unsqueeze(2) * rates).flatten(1)  # (h*w, E / 2)
    return angles.repeat_interleave(2, dim=1).repeat(grid.t, 1)


def _coordinates(places: int, rotary: Rotary) -> Tensor:
    """The coordinates (places,) float64 of the places of a row or column."""
    number, (kind, _, extent) = torch.arange(places, dtype=torch.float64), rotary.partition(":")
    if kind == "dinov3":
        return 4 * math.pi * ((number + 0.5) / places - 0.5)
    return (number + (kind == "pe")) * (int(extent) / places if extent else 1)
