"""Fixed position tables: sine and cosine of where a token stands.

N tokens, D width, t h w the grid's slices, rows and columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from everest.methods.grid import TokenGrid

Positions = Literal["flat", "separable"]


def position_table(positions: Positions, grid: TokenGrid, width: int) -> Tensor:
    """(N, D) float32: what is added to the tokens of a grid."""
    if positions == "flat":
        return sinusoid_positions(grid.num_tokens, width)
    return separable_positions(grid, width)


def sinusoid_positions(num_tokens: int, width: int) -> Tensor:
    """(N, D) float32: sine and cosine of the flat token number, alternating over the channels.

    The released programs split neither time nor height nor width; like them this counts in float64.
    """
    # As float64 throughout: the products reach thousands of radians at 128 frames.
    position = torch.arange(num_tokens, dtype=torch.float64).unsqueeze(1)  # (N, 1)
    pair = torch.arange((width + 1) // 2, dtype=torch.float64)  # (D/2,) of channels
    angle = position / torch.pow(10000.0, 2 * pair / width)  # (N, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width].float()


def separable_positions(grid: TokenGrid, width: int) -> Tensor:
    """(N, D) float32: a quarter of the channels tells the slice, three quarters the column, then the row.

    The table of MVD (Wang et al. 2023) and of MAE's spatial half; it extends to any number of slices.
    """
    time = _sines(torch.arange(grid.t), width // 4)  # (t, D/4)
    half = (width - width // 4) // 2
    column, row = _sines(torch.arange(grid.w), half), _sines(torch.arange(grid.h), half)
    shape = (grid.t, grid.h, grid.w, -1)
    parts = (time[:, None, None], column[None, None], row[None, :, None])
    return torch.cat([part.expand(shape) for part in parts], dim=-1).flatten(0, 2).float()


def _sines(places: Tensor, width: int) -> Tensor:
    """(places, width) float64: all sines, then all cosines."""
    rates = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angle = places.double().unsqueeze(1) / torch.pow(10000.0, rates)  # (places, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
