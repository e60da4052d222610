"""The selection of LVMAE (Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024).

B batch, N tokens, M target tokens, t h w the grid's slices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import Embedding, learned_score, pixel_change
from everest.methods.masks import Tube
from everest.methods.ranked import ranks_in_parts
from everest.methods.selection import Ratio, RatioOrZero, Strategy, ascending

ScoreName = Literal["learned", "random", "frame-difference"]
SLICES: Final = 8  # of a tokenizer's window of 16 frames, LVMAE §4.1


@dataclass(frozen=True, kw_only=True)
class LearnedImportance(Strategy):
    """LVMAE's selection (§3.2): encodes random tubes and predicts a small share of the other tokens.

    The target is `keep_ratio` of all tokens by score and `random_ratio` at random. Visible tokens are never
    targets, so all targets count in the loss. In the paper a trained tokenizer gives the score.

    Args:
        score: how the targets are chosen. If 5 % of the tokens are predicted, the top-1 on rendered clips is
            42 % with `learned`, 38 % with `frame-difference`, which needs no tokenizer, 20 % with `random`,
            and 18 % without pre-training (benchmarks/evidence/lvmae-few.yaml).
        scope: the tokens that are ranked together: the whole clip (LVMAE §3.2), or each window of `window`
            slices.
    """

    strategy: Literal["learned-importance"] = "learned-importance"
    mask_ratio: Ratio = 0.9  # LVMAE §4.1; the number of masked places is rounded down, as in `tube`
    keep_ratio: Ratio = 0.10  # LVMAE §4.1
    random_ratio: RatioOrZero = 0.05  # LVMAE §4.1
    score: ScoreName = "learned"
    scope: Literal["clip", "window"] = "clip"
    window: Annotated[int, Field(ge=1)] = SLICES  # slices that are ranked together with `scope: window`

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        match self.score:
            case "learned":
                return learned_score(frames, embed)
            case "frame-difference":
                return pixel_change(frames, embed.tubelet, embed.pixels)
            case "random":
                return None

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        visible = Tube(mask_ratio=self.mask_ratio)(grid, importance=None, noise=noise).visible
        if num_tubes := visible.size(1) // grid.t:
            # The tubes took the smallest numbers of the first slice. Those above are uniform: they are
            # stretched over the whole range again, so that the noise does not depend on the tubes.
            first = noise[:, : grid.per_slice]
            border = first.gather(1, visible[:, :num_tubes]).amax(dim=1, keepdim=True)  # (B, 1)
            stretched = ((first - border) / (1 - border)).clamp(0, 1)
            noise = torch.cat([stretched, noise[:, grid.per_slice :]], dim=1)
        seen = torch.zeros_like(noise).scatter_(1, visible, 1.0)  # (B, N)
        hidden = grid.num_tokens - visible.size(1)
        num_important = min(num_kept(grid.num_tokens, self.keep_ratio), hidden)
        num_random = min(num_kept(grid.num_tokens, self.random_ratio), hidden - num_important)
        if self.score == "random":
            return TokenSelection(visible, _smallest(2 * seen + noise, num_important + num_random))
        assert importance is not None, "this score measures"
        # Ties, common in a still clip, are in random order: token order would favor the first slices.
        shuffled = noise.argsort(dim=1, stable=True)  # (B, N)
        offered = importance.masked_fill(seen.bool(), torch.finfo(importance.dtype).min).gather(1, shuffled)
        order = shuffled.gather(1, offered.argsort(dim=1, descending=True, stable=True))  # seen tokens last
        if self.scope == "window":  # the best token of every window, then every second best
            rank = ranks_in_parts(order, grid.per_slice * self.window)
            rank = rank.masked_fill(seen.gather(1, order).bool(), grid.num_tokens)  # a window may be all seen
            order = order.gather(1, rank.argsort(dim=1, stable=True))
        important = order[:, :num_important]
        taken = (seen + noise).scatter_add_(1, important, torch.ones_like(noise))
        return TokenSelection(visible, ascending(torch.cat([important, _smallest(taken, num_random)], dim=1)))

    @property
    def needs_tokenizer(self) -> bool:
        return self.score == "learned"

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.keep_ratio + self.random_ratio > 1:
            both = f"{self.random_ratio} and keep_ratio ({self.keep_ratio})"
            yield "random_ratio", f"{both} are more than all tokens"


def _smallest(key: Tensor, number: int) -> Tensor:
    """The ids (B, number) with the smallest keys (B, N), ascending."""
    return ascending(key.argsort(dim=1, stable=True)[:, :number])
