"""Which tokens are encoded and which are predicted: all strategies, and those that measure the clip.

A strategy is a frozen dataclass: its fields are its settings in a recipe, its call is the choice. Those that
do not look at the clip are in everest.masks.

B batch, C channels, T frames, H W pixels, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import DistanceName, Embedding, change_importance, pixel_importance
from everest.methods.masks import (
    STRICT,
    FrameWise,
    RandomSpaceTime,
    RunningCell,
    Tube,
    ascending,
    checked_share,
    not_measured,
    split,
)
from everest.methods.ranked import LearnedImportance


class Selector(Protocol):
    """What a strategy is to the models."""

    @property
    def strategy(self) -> str:
        """Its name in a recipe."""
        ...

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor | None:
        """(B, N) float32 measured on the clips (B, C, T, H, W); None for strategies that do not measure."""
        ...

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        """Choose tokens.

        Args:
            importance: (B, N) float32, higher is kept first; None for strategies that do not measure.
            noise: (B, at least N) uniform in [0, 1).
        Raises:
            RecipeError: the strategy cannot cut the grid.
        """
        ...


def choose(
    selector: Selector, frames: Tensor, grid: TokenGrid, embed: Embedding, noise: Tensor
) -> TokenSelection:
    """What a strategy chooses on clips (B, C, T, H, W), after measuring what it asks for."""
    return selector(grid, importance=selector.importance(frames, embed), noise=noise)


@dataclass(frozen=True, kw_only=True)
class ByImportance:
    """Keep the most important tokens, encode a random part of them, predict the others.

    EVEREST §4.1 predicts all kept tokens; the released program and the paper's own cost tables leave the
    visible ones out, and so does this.
    """

    __pydantic_config__ = STRICT
    keep_ratio: float = 0.3  # rho_pre, EVEREST Table 7
    visible_ratio: float | None = 0.1  # rho_pre * rho_post, EVEREST §4.1; None: all that is kept
    order: Literal["descending", "ascending"] = "descending"  # EVEREST Table 16

    def ranked(self, importance: Tensor) -> Tensor:
        """(B, N) token ids, those that are kept first in front."""
        # Stable: the first slice copies the second's distances, so ties are the rule, not the exception.
        return importance.argsort(dim=1, descending=self.order == "descending", stable=True)

    def keeping(self, share: float) -> Self:
        """The same, but it keeps and encodes `share` of all tokens."""
        return replace(self, keep_ratio=checked_share(share), visible_ratio=None)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        assert importance is not None, "this selection sorts by importance"
        kept = self.ranked(importance)[:, : num_kept(grid.num_tokens, self.keep_ratio)]  # (B, K)
        if self.visible_ratio is None:
            return TokenSelection(ascending(kept), kept[:, :0])
        return split(kept, noise, num_kept(grid.num_tokens, self.visible_ratio))


@dataclass(frozen=True, kw_only=True)
class RedundancyRobust(ByImportance):
    """EVEREST §4.1: important is what the embedding says has changed since the slice before."""

    strategy: Literal["redundancy-robust"] = "redundancy-robust"
    distance: DistanceName = "l2"  # EVEREST Table 9
    first_slice: Literal["copy", "zero"] = "copy"  # released program: copy

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return change_importance(
            frames, embed, embed.tubelet, distance=self.distance, first_slice=self.first_slice
        )


@dataclass(frozen=True, kw_only=True)
class FrameDifference(ByImportance):
    """A baseline: important is where pixels differ from the frame before, whatever the embedding says."""

    strategy: Literal["frame-difference"] = "frame-difference"

    def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
        return pixel_importance(frames, embed.tubelet)


@dataclass(frozen=True, kw_only=True)
class AllTokens:
    """Nothing is left out and nothing predicted: ordinary fine-tuning."""

    __pydantic_config__ = STRICT
    strategy: Literal["all"] = "all"

    importance = not_measured

    def keeping(self, share: float) -> AllTokens | RedundancyRobust:
        """Of less than all it is told by their change, which a strategy that takes all does not measure."""
        return self if checked_share(share) == 1 else RedundancyRobust().keeping(share)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return TokenSelection(tokens, tokens[:, :0])


def at_test(selector: Strategy, keep: float | None = None) -> Strategy:
    """What a classifier encodes where nothing may be drawn: random tubes are left out in training only.

    Ours: LVMAE does not say what it encodes in a test.

    Args:
        keep: the share of the tokens; None as trained.
    Raises:
        ValueError: `keep` is no share.
    """
    as_trained = AllTokens() if isinstance(selector, Tube) else selector
    return as_trained if keep is None else as_trained.keeping(keep)


STRATEGIES = {
    "redundancy-robust": RedundancyRobust,
    "frame-difference": FrameDifference,
    "tube": Tube,
    "random": RandomSpaceTime,
    "running-cell": RunningCell,
    "frame": FrameWise,
    "learned-importance": LearnedImportance,
    "all": AllTokens,
}
Strategy = (
    RedundancyRobust
    | FrameDifference
    | Tube
    | RandomSpaceTime
    | RunningCell
    | FrameWise
    | LearnedImportance
    | AllTokens
)
