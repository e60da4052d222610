"""The selection of LVMAE (Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024).

B batch, N tokens, M target tokens, t h w the grid's slices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import Embedding, change_importance, pixel_importance
from everest.methods.masks import Tube
from everest.methods.ranked import ranks_in_parts
from everest.methods.selector import Selector, ascending

ScoreName = Literal["learned", "random", "uniform-frames", "frame-difference", "embedding-distance", "all"]
SLICES: Final = 8  # of a tokenizer's window of 16 frames, LVMAE §4.1


@dataclass(frozen=True, kw_only=True)
class LearnedImportance(Selector):
    """LVMAE's selection (§3.2): encodes random tubes and predicts a small share of the other tokens.

    The target is `keep_ratio` of all tokens by score and `random_ratio` at random. Visible tokens are never
    targets, so all targets count in the loss. In the paper a trained tokenizer gives the score; the other
    scores are those that §4.2 compares with, with the same encoder mask and the same counts.

    Args:
        score: how the targets are chosen. `learned` takes the scores of a tokenizer; `uniform-frames` takes
            whole slices at equal distances; `all` predicts every token that is not visible.
        scope: the tokens that are ranked together: the whole clip (LVMAE §3.2), or each window of `window`
            slices.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("random_ratio",)
    strategy: Literal["learned-importance"] = "learned-importance"
    mask_ratio: float = 0.9  # LVMAE §4.1; the number of masked places is rounded down, as in `tube`
    keep_ratio: float = 0.10  # LVMAE §4.1
    random_ratio: float = 0.05  # LVMAE §4.1
    score: ScoreName = "learned"
    scope: Literal["clip", "window"] = "clip"
    window: int = SLICES  # slices that are ranked together with `scope: window`

    @property
    def needs_tokenizer(self) -> bool:
        return self.score == "learned"

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """(B, N) float32; None if the score does not depend on the clip."""
        match self.score:
            case "learned":
                if embed.scores is None:
                    raise RecipeError(
                        "learned-importance needs a trained tokenizer, as everest train-tokenizer makes it"
                    )
                return embed.scores(frames)
            case "frame-difference":
                return pixel_importance(frames, embed.tubelet, embed.pixels)
            case "embedding-distance":
                return change_importance(frames, embed)
        return None

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.keep_ratio + self.random_ratio > 1:
            both = f"{self.random_ratio} and keep_ratio ({self.keep_ratio})"
            yield "random_ratio", f"{both} are more than all tokens"
        if self.window < 1:
            yield "window", f"must be at least 1 slice, not {self.window}"

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        visible = Tube(mask_ratio=self.mask_ratio)(grid, importance=None, noise=noise).visible
        noise = noise[:, : grid.num_tokens]
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
        num_target = hidden if self.score == "all" else num_important + num_random
        if self.score == "uniform-frames":
            # As many evenly spaced slices as the targets fill. LVMAE §4.2: every 7th frame, 15 % of them.
            slices = max(1, -(-num_target * grid.t // max(hidden, 1)))  # rounded up
            near = torch.tensor([(2 * i + 1) * grid.t // (2 * slices) for i in range(slices)])
            far = torch.ones(grid.t).scatter_(0, near, 0.0).repeat_interleave(grid.per_slice)  # (N,)
            noise = noise + far.to(noise.device)
        if self.score in ("random", "uniform-frames", "all"):
            return TokenSelection(visible, _smallest(2 * seen + noise, num_target))
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


def _smallest(key: Tensor, number: int) -> Tensor:
    """The ids (B, number) with the smallest keys (B, N), ascending."""
    return ascending(key.argsort(dim=1, stable=True)[:, :number])
