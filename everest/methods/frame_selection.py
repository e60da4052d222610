"""Information-intensive frame selection (EVEREST §4.2): of more frames than fit, those where much happens.

The paper does not specify three things: what happens if too few pairs have tokens, where the chosen pairs are
placed, and what is measured afterwards. These are our choices, marked where they are made.

B batch, C channels, T frames, H W pixels, S candidate slices, t slices of the clip, N tokens. A slice is a
pair of frames with the usual tubelets.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from everest.methods.grid import TokenGrid
from everest.methods.ranked import ByImportance


def num_candidates(slices: int, alpha: float) -> int:
    """The number of slices that `slices` are drawn from: alpha times as many, rounded down."""
    return int(slices * Fraction(str(alpha)))


def kept_per_slice(selector: ByImportance, importance: Tensor, grid: TokenGrid) -> Tensor:
    """(B, S) int64: how many of the kept tokens of all candidates are in each slice, c_i in the paper."""
    kept = selector.kept(grid, importance)  # (B, K)
    counts = torch.zeros(kept.size(0), grid.t, dtype=torch.int64, device=kept.device)
    return counts.scatter_add_(1, kept // grid.per_slice, torch.ones_like(kept))


def draw_slices(counts: Tensor, uniform: Tensor, num: int) -> Tensor:
    """Draw slices without replacement, each with probability c_i / sum of the c of the remaining slices.

    Taking the smallest of -log(u) / c is equivalent to drawing one after the other (Efraimidis and Spirakis
    2006). Slices without kept tokens come last, in the order of their `uniform` (our choice).

    Args:
        counts: (B, S) kept tokens of each candidate.
        uniform: (B, S) in [0, 1).
        num: t, how many to draw.
    Returns:
        (B, t) int64 candidate numbers in temporal order.
    """
    smallest = torch.finfo(uniform.dtype).tiny
    keys = -uniform.clamp_min(smallest).log() / counts  # (B, S), infinite if nothing is kept
    shuffled = uniform.argsort(dim=1, stable=True)
    order = shuffled.gather(1, keys.gather(1, shuffled).argsort(dim=1, stable=True))
    return order[:, :num].sort(dim=1).values
