"""The positions that are added to tokens, computed or learned, for the clips of a model.

B batch, K tokens, N tokens, D width, t h w the grid's slices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.values import Positions
from everest.methods.grid import TokenGrid
from everest.models.rotary import RotaryPositions


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
        self.spatial = _learned(grid.per_slice, width)  # (1, h*w, D)
        self.temporal = _learned(grid.t, width)  # (1, t, D)
        self.class_token = _learned(1, width) if class_token else None  # (1, 1, D)

    def forward(self, ids: Tensor) -> Tensor:
        """The positions (B, K, D) of the tokens `ids` (B, K)."""
        per_slice = self.spatial.size(1)
        return self.spatial[0, ids % per_slice] + self.temporal[0, ids // per_slice]


def _learned(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, width), std=0.02))


TokenPositions = FixedPositions | LearnedPositions | RotaryPositions


def make_positions(
    positions: Positions,
    grid: TokenGrid,
    width: int,
    heads: int,
    *,
    class_token: bool = False,
    trained_grid: TokenGrid | None = None,
) -> TokenPositions:
    """The positions of a grid; learned ones also for a class token, if there is one.

    Args:
        trained_grid: the tokens that interpolated positions were computed for; None: `grid`.
    """
    if positions == "rotary":
        return RotaryPositions(grid, width // heads)
    if positions == "learned-separable":
        return LearnedPositions(grid, width, class_token=class_token)
    if positions == "flat" or positions == "separable":
        return FixedPositions(position_table(positions, grid, width))
    trained_grid = trained_grid or grid
    table = position_table(INTERPOLATED[positions], trained_grid, width)
    return FixedPositions(interpolated_table(table, trained_grid, grid))


def add_positions(tokens: Tensor, positions: TokenPositions, ids: Tensor) -> Tensor:
    """Add positions to the tokens `ids` (B, K), given as (B, K, D) or one for all, (1, 1, D): (B, K, D).

    Under autocast tokens have a lower precision than positions. The sum has that of the positions, and so
    have tokens with rotary positions, to which nothing is added.
    """
    if isinstance(positions, RotaryPositions):
        return tokens.expand(*ids.shape, -1).to(torch.promote_types(tokens.dtype, positions.cos.dtype))
    return tokens + positions(ids)


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


def position_table(positions: ComputedPositions, grid: TokenGrid, width: int) -> Tensor:
    """The table (N, D) float32 of computed positions, which is added to the tokens of a grid."""
    if positions == "flat":
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
