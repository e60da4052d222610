"""LVMAE's selection: tubes for the encoder, and a small share of what is left for the decoder.

Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024, §3.2: the decoder predicts the
most important of the unseen tokens and a few random ones. Which are important a trained tokenizer tells; the
other scores are those that the paper compares with (§4.2), with the same encoder mask and the same counts.

B batch, N tokens, M target tokens, t h w the grid of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import Embedding, TokenScores, change_importance, pixel_importance
from everest.methods.masks import STRICT, Tube, ascending, without

ScoreName = Literal["learned", "random", "uniform-frames", "frame-difference", "embedding-distance", "all"]
SLICES: Final = 8  # of a tokenizer's window of 16 frames, LVMAE §4.1


@dataclass(frozen=True, kw_only=True)
class LearnedImportance:
    """Random tubes are encoded; of all tokens `keep_ratio` by score and `random_ratio` by chance predicted.

    Visible tokens are never targets, so all targets count in the loss.

    Args:
        score: by what the targets are chosen. `learned` asks a tokenizer; `uniform-frames` takes whole slices
            at equal distances; `all` predicts all that is not visible.
        scope: what is ranked together: the whole clip (LVMAE §3.2), or each window of `window` slices.
    """

    __pydantic_config__ = STRICT
    strategy: Literal["learned-importance"] = "learned-importance"
    mask_ratio: float = 0.9  # LVMAE §4.1; masked places are floored, as of tubes
    keep_ratio: float = 0.10  # LVMAE §4.1
    random_ratio: float = 0.05  # LVMAE §4.1
    score: ScoreName = "learned"
    scope: Literal["clip", "window"] = "clip"
    window: int = SLICES

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """(B, N) float32; None where the score does not look at the clip.

        Raises:
            RecipeError: the score is learned, and nothing is there that has learned it.
        """
        if self.score == "learned":
            if not isinstance(embed, TokenScores):
                raise RecipeError(
                    "learned-importance needs a trained tokenizer, as everest train-tokenizer makes it"
                )
            return embed.scores(frames)
        if self.score == "frame-difference":
            return pixel_importance(frames, embed.tubelet)
        if self.score == "embedding-distance":
            return change_importance(frames, embed, embed.tubelet)
        return None

    def keeping(self, share: float) -> LearnedImportance:
        """The same, but it encodes `share` of all places."""
        return replace(self, mask_ratio=without(share))

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        visible = Tube(mask_ratio=self.mask_ratio)(grid, importance=None, noise=noise).visible
        noise = _fresh_where_hidden(noise[:, : grid.num_tokens], visible, grid)
        seen = torch.zeros_like(noise).scatter_(1, visible, 1.0)  # (B, N)
        hidden = grid.num_tokens - visible.size(1)
        if not hidden:
            return TokenSelection(visible, visible[:, :0])
        if self.score == "all":
            return TokenSelection(visible, ascending(_last(seen, grid.num_tokens)[:, :hidden]))
        important, chance = (
            num_kept(grid.num_tokens, share) for share in (self.keep_ratio, self.random_ratio)
        )
        important = min(important, hidden)
        chance = min(chance, hidden - important)
        if self.score == "random":
            return TokenSelection(visible, ascending(_last(seen + noise, important + chance)))
        if self.score == "uniform-frames":
            away = _far_from_even_slices(grid, important + chance, hidden).to(noise.device)  # (N,)
            return TokenSelection(visible, ascending(_last(seen * grid.t + away + noise, important + chance)))
        assert importance is not None, "this score measures"
        chosen = self._ranked(grid, importance, seen, noise)[:, :important]
        by_chance = _last((seen + noise).scatter_add_(1, chosen, torch.ones_like(noise)), chance)
        return TokenSelection(visible, ascending(torch.cat([chosen, by_chance], dim=1)))

    def _ranked(self, grid: TokenGrid, importance: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        """(B, N) token ids, unseen ones first by importance; by windows the best of each, then the next.

        Equal scores, the rule where nothing moves, come by chance: in the order of their places the first
        slices would be all that is predicted of a still clip.
        """
        shuffled = noise.argsort(dim=1, stable=True)  # (B, N)
        offered = importance.masked_fill(seen.bool(), torch.finfo(importance.dtype).min).gather(1, shuffled)
        order = shuffled.gather(1, offered.argsort(dim=1, descending=True, stable=True))
        if self.scope == "clip":
            return order
        window = order // (grid.per_slice * self.window)  # (B, N): of each token in its rank
        by_window = window.argsort(dim=1, stable=True)  # window after window, each by importance
        counts = torch.arange(grid.num_tokens, device=order.device) % (grid.per_slice * self.window)
        place = torch.empty_like(order).scatter_(1, by_window, counts.expand_as(order))  # in its window
        place = place.masked_fill(seen.gather(1, order).bool(), grid.num_tokens)  # a window may be seen whole
        return order.gather(1, place.argsort(dim=1, stable=True))


def _last(key: Tensor, number: int) -> Tensor:
    """The ids (B, number) with the smallest keys (B, N)."""
    return key.argsort(dim=1, stable=True)[:, :number]


def _fresh_where_hidden(noise: Tensor, visible: Tensor, grid: TokenGrid) -> Tensor:
    """Noise (B, N) that says nothing of the tubes, which were the first slice's smallest numbers.

    Above the largest of these the others are uniform: they are stretched over the whole range again.
    """
    num_tubes = visible.size(1) // grid.t
    if num_tubes == 0:
        return noise
    first = noise[:, : grid.per_slice]
    border = first.gather(1, visible[:, :num_tubes]).amax(dim=1, keepdim=True)  # (B, 1)
    stretched = ((first - border) / (1 - border)).clamp(0, 1)
    return torch.cat([stretched, noise[:, grid.per_slice :]], dim=1)


def _far_from_even_slices(grid: TokenGrid, number: int, hidden: int) -> Tensor:
    """(N,) 0 in as many evenly spaced slices as `number` of the `hidden` tokens fill, 1 elsewhere.

    LVMAE §4.2 takes every 7th frame, which is 15 % of them.
    """
    slices = max(1, -(-number * grid.t // hidden))  # rounded up
    chosen = torch.tensor([(2 * i + 1) * grid.t // (2 * slices) for i in range(slices)])
    away = torch.ones(grid.t).scatter_(0, chosen, 0.0)
    return away.repeat_interleave(grid.per_slice)
