"""All strategies by their names, and the two that only fine-tuning uses: all tokens, and tube dropout.

The contract of a strategy is in everest.methods.selector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

import torch
from pydantic import Discriminator
from torch import Tensor

from everest.methods.external import external, is_import_path, named_class
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.learned import LearnedImportance
from everest.methods.masks import FrameWise, RandomSpaceTime, RunningCell, Tube, random_tubes
from everest.methods.ranked import ByChange, ByImportance, Drawn, FrameDifference, RedundancyRobust
from everest.methods.selector import Selector, checked_share, split

__all__ = [  # of everest.strategies
    "STRATEGIES",
    "AllTokens",
    "ByChange",
    "ByImportance",
    "Drawn",
    "FrameDifference",
    "FrameWise",
    "LearnedImportance",
    "RandomSpaceTime",
    "RedundancyRobust",
    "RunningCell",
    "Selector",
    "TokenGrid",
    "TokenSelection",
    "Tube",
    "TubeDropout",
    "num_kept",
    "split",
]


@dataclass(frozen=True, kw_only=True)
class AllTokens(Selector):
    """Encodes all tokens and predicts none: ordinary fine-tuning."""

    strategy: Literal["all"] = "all"

    @property
    def draws(self) -> bool:
        return False

    def keeping(self, share: float) -> AllTokens | RedundancyRobust:
        """Less than all tokens are chosen by redundancy-robust, because `all` has no ranking."""
        return self if checked_share(share) == 1 else RedundancyRobust().keeping(share)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        tokens = torch.arange(grid.num_tokens, device=noise.device).expand(noise.size(0), -1)
        return TokenSelection(tokens, tokens[:, :0])


@dataclass(frozen=True, kw_only=True)
class TubeDropout(Selector):
    """Drops random tubes in fine-tuning (LVMAE §4.1): encodes the same random places of every slice."""

    strategy: Literal["tube-dropout"] = "tube-dropout"
    keep_ratio: float = 0.8  # LVMAE §4.1 drops 20 %; the number of kept places is rounded down

    def keeping(self, share: float) -> TubeDropout:
        return replace(self, keep_ratio=checked_share(share))

    def at_evaluation(self, keep: float | None = None) -> AllTokens | RedundancyRobust:
        """All tokens. Our choice: LVMAE does not state which tokens it encodes in evaluation."""
        return AllTokens() if keep is None else AllTokens().keeping(keep)

    def __call__(self, grid: TokenGrid, *, importance: Tensor | None, noise: Tensor) -> TokenSelection:
        kept, _ = random_tubes(grid, noise, num_kept(grid.per_slice, self.keep_ratio))
        return TokenSelection(kept, kept[:, :0])


Strategy = (
    RedundancyRobust
    | Drawn
    | FrameDifference
    | Tube
    | TubeDropout
    | RandomSpaceTime
    | RunningCell
    | FrameWise
    | LearnedImportance
    | AllTokens
)
STRATEGIES: dict[str, type[Strategy]] = {strategy.strategy: strategy for strategy in get_args(Strategy)}


EXTERNAL = external(Selector, "strategy")  # further annotations: a strategy of another package
StoredStrategy = Annotated[Strategy, Discriminator("strategy"), *EXTERNAL]


def strategy_class(name: str) -> type[Selector]:
    """Return the class of a strategy, or of an import path whose module is imported already.

    Raises:
        ValueError: the path names no strategy.
        KeyError: everest has no strategy of this name.
    """
    return named_class(name, Selector) if is_import_path(name) else STRATEGIES[name]
