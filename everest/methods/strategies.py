"""All strategies by their names. The contract of a strategy is in everest.methods.selector."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Discriminator

from everest.methods.external import external
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.learned import LearnedImportance
from everest.methods.masks import AllTokens, FrameWise, RandomSpaceTime, RunningCell, Tube, TubeDropout
from everest.methods.ranked import ByChange, ByImportance, Drawn, FrameDifference, RedundancyRobust
from everest.methods.selector import Selector, split

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

# In fine-tuning, all kept tokens are encoded. The order is that of messages and figures.
FinetuneStrategy = RedundancyRobust | Drawn | FrameDifference | AllTokens | TubeDropout
Strategy = (
    RedundancyRobust
    | Drawn
    | FrameDifference
    | Tube
    | TubeDropout
    | RandomSpaceTime
    | RunningCell
    | FrameWise
    | AllTokens
    | LearnedImportance
)
STRATEGIES: dict[str, type[Strategy]] = {strategy.strategy: strategy for strategy in get_args(Strategy)}

EXTERNAL = external(Selector, "strategy")  # further annotations: a strategy of another package
StoredStrategy = Annotated[Strategy, Discriminator("strategy"), *EXTERNAL]
