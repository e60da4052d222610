"""Strategies that rank tokens: by their change since the slice before, or by a tokenizer's scores.

EVEREST's redundancy-robust selection, a baseline on pixels, and the selection of LVMAE (Gundavarapu et al.,
Extending Video Masked Autoencoders to 128 frames, 2024).

B batch, N tokens, K kept tokens, M target tokens, t h w the grid's slices, rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar, Final, Literal, Self

import torch
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.alignment import Align, Cuts
from everest.methods.grid import TokenGrid, TokenSelection, num_at_most, num_kept
from everest.methods.importance import (
    DistanceName,
    Embedding,
    TokenScores,
    change_importance,
    pixel_importance,
)
from everest.methods.masks import Tube
from everest.methods.selector import Selector, ascending, checked_share, split, takes_bytes

ScoreName = Literal["learned", "random", "uniform-frames", "frame-difference", "embedding-distance", "all"]
SLICES: Final = 8  # of a tokenizer's window of 16 frames, LVMAE §4.1


@dataclass(frozen=True, kw_only=True)
class ByImportance(Selector):
    """Keeps the most important tokens, encodes a random part of them and predicts the others.

    EVEREST §4.1 predicts all kept tokens; the released program and the paper's own cost tables predict only
    those that are not visible, and so does this class.
    """

    keep_ratio: float = 0.3  # rho_pre, EVEREST Table 7
    visible_ratio: float | None = 0.1  # rho_pre * rho_post, EVEREST §4.1; None: all kept tokens
    order: Literal["descending", "ascending"] = "descending"  # EVEREST Table 16
    slice_cap: float | None = None  # the largest share of the kept tokens in one slice; ours

    @property
    def draws(self) -> bool:
        return self.visible_ratio is not None

    def ranked(self, importance: Tensor) -> Tensor:
        # Stable: the first slice copies the second slice's distances, so ties are common.
        return importance.argsort(dim=1, descending=self.order == "descending", stable=True)

    def kept(self, grid: TokenGrid, importance: Tensor) -> Tensor:
        """(B, K) ids of the kept tokens of `grid`, the most important first.

        Raises:
            RecipeError: `slice_cap` leaves too few tokens.
        """
        order, count = self.ranked(importance), num_kept(grid.num_tokens, self.keep_ratio)
        if self.slice_cap is not None:
            most = num_at_most(count, self.slice_cap)
            if most * grid.t < count:
                raise RecipeError(
                    f"slice_cap: {grid.t} slices cannot hold all kept tokens with {self.slice_cap:g} of them "
                    f"each; give at least {-(-10_000 // grid.t) / 10_000:g}"
                )
            order = _with_a_cap(order, grid, most)
        return order[:, :count]

    def keeping(self, share: float) -> Self:
        return replace(self, keep_ratio=checked_share(share), visible_ratio=None)

    def showing(self, share: float) -> Self:
        """Keeps `share` of all tokens, of which at most a third is visible, as in a recipe."""
        third = float(Decimal(str(share)) / 3)  # of the number as written: 0.1 of 0.3, not slightly less
        return replace(self, keep_ratio=share, visible_ratio=min(self.visible_ratio or share, third))

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.slice_cap is not None and not 0 < self.slice_cap <= 1:
            yield "slice_cap", f"must be more than 0 and at most 1, not {self.slice_cap}"
        if (self.visible_ratio or 0) > self.keep_ratio:
            yield "visible_ratio", f"{self.visible_ratio} is more than keep_ratio ({self.keep_ratio})"

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        assert importance is not None, "this strategy ranks by importance"
        kept = self.kept(grid, importance)  # (B, K)
        if self.visible_ratio is None:
            return TokenSelection(ascending(kept), kept[:, :0])
        return split(kept, noise, num_kept(grid.num_tokens, self.visible_ratio))


@dataclass(frozen=True, kw_only=True)
class ByChange(ByImportance):
    """Keeps the tokens that changed since an earlier frame, on request without the camera's part of it.

    Args:
        align: `shift` and `affine` remove this motion of the camera before the change is measured.
        cuts: `detect` lets the first slice of a scene take the importance of the next one, as in a clip.
    """

    align: Align = "none"
    cuts: Cuts = "ignore"

    @property
    def sees_camera(self) -> bool:
        """Whether the camera's motion or cuts are estimated."""
        return self.align != "none" or self.cuts == "detect"

    def lag(self, tubelet_frames: int) -> int:
        """The frames from an earlier frame to the one that it is compared with."""
        return tubelet_frames


@dataclass(frozen=True, kw_only=True)
class RedundancyRobust(ByChange):
    """EVEREST §4.1: a token is important if its embedding has changed since the slice before."""

    strategy: Literal["redundancy-robust"] = "redundancy-robust"
    distance: DistanceName = "l2"  # EVEREST Table 9
    first_slice: Literal["copy", "zero"] = "copy"  # released program: copy

    @takes_bytes
    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return change_importance(
            frames,
            embed,
            embed.tubelet,
            distance=self.distance,
            first_slice=self.first_slice,
            align=self.align,
            cuts=self.cuts,
        )


@dataclass(frozen=True, kw_only=True)
class FrameDifference(ByChange):
    """A baseline: a token is important if its pixels differ from the frame before. It uses no embedding."""

    strategy: Literal["frame-difference"] = "frame-difference"

    def lag(self, tubelet_frames: int) -> int:
        return 1

    @takes_bytes
    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return pixel_importance(frames, embed.tubelet, embed.pixels, align=self.align, cuts=self.cuts)


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
    window: int = SLICES

    @property
    def needs_tokenizer(self) -> bool:
        return self.score == "learned"

    @takes_bytes
    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """(B, N) float32; None if the score does not depend on the clip.

        Raises:
            RecipeError: the score is `learned`, and `embed` has no tokenizer.
        """
        if self.needs_tokenizer:
            if not isinstance(embed, TokenScores):
                raise RecipeError(
                    "learned-importance needs a trained tokenizer, as everest train-tokenizer makes it"
                )
            return embed.scores(frames)
        if self.score == "frame-difference":
            return pixel_importance(frames, embed.tubelet, embed.pixels)
        if self.score == "embedding-distance":
            return change_importance(frames, embed, embed.tubelet)
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
        noise = _independent_of_tubes(noise[:, : grid.num_tokens], visible, grid)
        seen = torch.zeros_like(noise).scatter_(1, visible, 1.0)  # (B, N)
        hidden = grid.num_tokens - visible.size(1)
        if not hidden:
            return TokenSelection(visible, visible[:, :0])
        if self.score == "all":
            return TokenSelection(visible, _smallest(seen, hidden))
        num_important = min(num_kept(grid.num_tokens, self.keep_ratio), hidden)
        num_random = min(num_kept(grid.num_tokens, self.random_ratio), hidden - num_important)
        if self.score == "random":
            return TokenSelection(visible, _smallest(seen + noise, num_important + num_random))
        if self.score == "uniform-frames":
            # As many evenly spaced slices as the targets fill. LVMAE §4.2: every 7th frame, 15 % of them.
            num_target = num_important + num_random
            slices = max(1, -(-num_target * grid.t // hidden))  # rounded up
            near = torch.tensor([(2 * i + 1) * grid.t // (2 * slices) for i in range(slices)])
            far = torch.ones(grid.t).scatter_(0, near, 0.0).repeat_interleave(grid.per_slice)  # (N,)
            return TokenSelection(
                visible, _smallest(seen * grid.t + far.to(noise.device) + noise, num_target)
            )
        assert importance is not None, "this score measures"
        important = self._by_importance(grid, importance, seen, noise)[:, :num_important]
        taken = (seen + noise).scatter_add_(1, important, torch.ones_like(noise))
        return TokenSelection(visible, ascending(torch.cat([important, _smallest(taken, num_random)], dim=1)))

    def _by_importance(self, grid: TokenGrid, importance: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        """(B, N) token ids, most important first, seen tokens last.

        With windows: the best token of every window, then every second best. Ties, common in a still clip,
        are in random order: token order would favor the first slices.
        """
        shuffled = noise.argsort(dim=1, stable=True)  # (B, N)
        offered = importance.masked_fill(seen.bool(), torch.finfo(importance.dtype).min).gather(1, shuffled)
        order = shuffled.gather(1, offered.argsort(dim=1, descending=True, stable=True))
        if self.scope == "clip":
            return order
        rank = _ranks_in_parts(order, grid.per_slice * self.window)
        rank = rank.masked_fill(seen.gather(1, order).bool(), grid.num_tokens)  # a window may be fully seen
        return order.gather(1, rank.argsort(dim=1, stable=True))


def _with_a_cap(order: Tensor, grid: TokenGrid, most: int) -> Tensor:
    """Token ids (B, N) in their order, but after all others those that follow the first `most` of a slice."""
    too_late = _ranks_in_parts(order, grid.per_slice) >= most  # (B, N)
    return order.gather(1, too_late.long().argsort(dim=1, stable=True))


def _ranks_in_parts(order: Tensor, size: int) -> Tensor:
    """The rank (B, N) of each token of `order` in its part of the clip, of `size` successive tokens."""
    by_part = (order // size).argsort(dim=1, stable=True)  # part after part, each in its order
    counts = torch.arange(order.size(1), device=order.device) % size
    return torch.empty_like(order).scatter_(1, by_part, counts.expand_as(order))


def _smallest(key: Tensor, number: int) -> Tensor:
    """The ids (B, number) with the smallest keys (B, N), ascending."""
    return ascending(key.argsort(dim=1, stable=True)[:, :number])


def _independent_of_tubes(noise: Tensor, visible: Tensor, grid: TokenGrid) -> Tensor:
    """Noise (B, N) that does not depend on the tubes, which took the smallest numbers of the first slice.

    The numbers above the largest of those are uniform: they are stretched over the whole range again.
    """
    num_tubes = visible.size(1) // grid.t
    if num_tubes == 0:
        return noise
    first = noise[:, : grid.per_slice]
    border = first.gather(1, visible[:, :num_tubes]).amax(dim=1, keepdim=True)  # (B, 1)
    stretched = ((first - border) / (1 - border)).clamp(0, 1)
    return torch.cat([stretched, noise[:, grid.per_slice :]], dim=1)
