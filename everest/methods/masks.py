"""Masks that do not look at the clip: tubes, random tokens, whole slices, running cells.

A mask is a frozen dataclass: its fields are its settings in a recipe, its call is the choice. Every random
choice is a sort of the uniform `noise` handed in, so a selection is a pure function, equal anywhere.

B batch, N tokens, t h w the grid's slices, rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import Embedding

STRICT = ConfigDict(extra="forbid")


def not_measured(selector: object, frames: Tensor, embed: Embedding) -> None:
    """The `importance` of what does not look at the clip."""
    return None


def checked_share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"a share of the tokens to keep is more than 0 and at most 1, not {share}")
    return share


def ascending(ids: Tensor) -> Tensor:
    return ids.sort(dim=1).values


def split(candidates: Tensor, noise: Tensor, num_visible: int) -> TokenSelection:
    """A random `num_visible` of the `candidates` (B, K) visible, the others target."""
    order = noise.gather(1, candidates).argsort(dim=1, stable=True)
    shuffled = candidates.gather(1, order)
    return TokenSelection(ascending(shuffled[:, :num_visible]), ascending(shuffled[:, num_visible:]))


def _in_every_slice(places: Tensor, grid: TokenGrid) -> Tensor:
    """Places (B, K) of a slice to the tokens (B, t * K) there in every slice."""
    slices = torch.arange(grid.t, device=places.device).view(1, -1, 1) * grid.per_slice  # (1, t, 1)
    return (slices + ascending(places).unsqueeze(1)).flatten(1)


def without(share: float) -> float:
    """1 - share, on the decimals as written, like num_kept.

    Raises:
        ValueError: no share that leaves a token.
    """
    return float(1 - Decimal(str(checked_share(share))))


@dataclass(frozen=True, kw_only=True)
class Tube:
    """VideoMAE's tube masking (Tong et al. 2022, §3.3): one random map of places, masked in every slice.

    Args:
        keep_ratio: in fine-tuning, the share of places that is encoded, in place of `mask_ratio`; what is
            masked is left out and not predicted (LVMAE §4.1 leaves out 20 %).
    """

    __pydantic_config__ = STRICT
    strategy: Literal["tube"] = "tube"
    mask_ratio: float = 0.9  # VideoMAE §3.3; masked places are floored: 176 of 196
    keep_ratio: float | None = None

    importance = not_measured

    def keeping(self, share: float) -> Tube:
        """The same, but it encodes `share` of all places."""
        return replace(self, mask_ratio=without(share), keep_ratio=None)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        if self.keep_ratio is not None:
            places = noise[:, : grid.per_slice].argsort(dim=1, stable=True)
            kept = _in_every_slice(places[:, : num_kept(grid.per_slice, self.keep_ratio)], grid)
            return TokenSelection(kept, kept[:, :0])
        num_visible = grid.per_slice - num_kept(grid.per_slice, self.mask_ratio)
        places = noise[:, : grid.per_slice].argsort(dim=1, stable=True)  # (B, h*w)
        visible, target = places[:, :num_visible], places[:, num_visible:]
        return TokenSelection(_in_every_slice(visible, grid), _in_every_slice(target, grid))


@dataclass(frozen=True, kw_only=True)
class RandomSpaceTime:
    """ST-MAE's masking (Feichtenhofer et al. 2022, §3.2): tokens drawn uniformly over the whole clip."""

    __pydantic_config__ = STRICT
    strategy: Literal["random"] = "random"
    visible_ratio: float = 0.1  # ST-MAE masks 90 %; visible tokens are floored: 156 of 1568

    importance = not_measured

    def keeping(self, share: float) -> RandomSpaceTime:
        """The same, but it encodes `share` of all tokens."""
        return replace(self, visible_ratio=checked_share(share))

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return split(tokens, noise, num_kept(grid.num_tokens, self.visible_ratio))


@dataclass(frozen=True, kw_only=True)
class FrameWise:
    """VideoMAE's frame masking (Tong et al. 2022, Table 1b): whole slices are hidden and predicted."""

    __pydantic_config__ = STRICT
    strategy: Literal["frame"] = "frame"
    mask_ratio: float = 0.875  # VideoMAE Table 1b; masked slices are floored: 7 of 8

    importance = not_measured

    def keeping(self, share: float) -> FrameWise:
        """The same, but it encodes `share` of all slices."""
        return replace(self, mask_ratio=without(share))

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        num_visible = grid.t - num_kept(grid.t, self.mask_ratio)
        slices = noise[:, : grid.t].argsort(dim=1, stable=True)  # (B, t)
        places = torch.arange(grid.per_slice, device=noise.device)  # (h*w,)
        visible, target = (
            (ascending(part).unsqueeze(2) * grid.per_slice + places).flatten(1)
            for part in (slices[:, :num_visible], slices[:, num_visible:])
        )
        return TokenSelection(visible, target)


@dataclass(frozen=True, kw_only=True)
class RunningCell:
    """Running cells of 2 x 2 places: of each cell the next place takes over with every slice.

    VideoMAE V2 (Wang et al. 2023, §3.2) predicts so and encodes a tube; what is both seen and predicted
    counts for nothing. MAR (Qing et al. 2023, §3.2) encodes so and predicts the rest.
    """

    __pydantic_config__ = STRICT
    strategy: Literal["running-cell"] = "running-cell"
    encoder: Literal["tube", "running-cell"] = "tube"  # VideoMAE V2; MAR: running-cell
    mask_ratio: float = 0.9  # VideoMAE V2; MAR: 0.5. Masked places are floored
    target_ratio: float = 0.5  # VideoMAE V2 and MAR; predicted places of a cell, floored

    importance = not_measured

    def keeping(self, share: float) -> RunningCell:
        """The same, but it encodes `share` of all places."""
        return replace(self, mask_ratio=without(share))

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        if grid.h % 2 or grid.w % 2:
            raise RecipeError(
                f"running cells of 2 x 2 places do not fill {grid.h} x {grid.w} places; "
                "choose a size that is a multiple of two tubelets"
            )
        phase = (noise[:, -1] * 4).long()  # (B,): which place of a cell begins
        num_target = num_kept(4, self.target_ratio)
        if self.encoder == "tube":
            visible = Tube(mask_ratio=self.mask_ratio)(grid, importance=None, noise=noise).visible
            return TokenSelection(visible, _running(grid, phase, num_target))
        num_visible = 4 - num_kept(4, self.mask_ratio)
        target = _running(grid, phase + num_visible, min(num_target, 4 - num_visible))
        return TokenSelection(_running(grid, phase, num_visible), target)


def _running(grid: TokenGrid, phase: Tensor, num: int) -> Tensor:
    """(B, N * num / 4) tokens: `num` places of each cell, counted from `phase` (B,) + slice, ascending."""
    row = torch.arange(grid.h, device=phase.device).view(-1, 1) % 2  # (h, 1)
    column = torch.arange(grid.w, device=phase.device) % 2  # (w,)
    turn = torch.arange(grid.t, device=phase.device).view(-1, 1, 1)  # (t, 1, 1)
    # The position of a token in its cell's queue: the first `num` are chosen.
    place = (2 * row + column - turn - phase.view(-1, 1, 1, 1)) % 4  # (B, t, h, w)
    order = place.flatten(1).argsort(dim=1, stable=True)  # (B, N): place 0 of all cells, then place 1, …
    return ascending(order[:, : grid.num_tokens // 4 * num])
