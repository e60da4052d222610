"""All strategies by their names. The contract of a strategy is in everest.methods.selection."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Discriminator

from everest.methods.external import external
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.learned import LearnedImportance
from everest.methods.masks import AllTokens, FrameWise, RandomSpaceTime, RunningCell, Tube, TubeDropout
from everest.methods.ranked import Drawn, FrameDifference, RedundancyRobust, TopK
from everest.methods.selection import Ratio, RatioOrZero, Strategy, split

__all__ = [  # of everest.strategies
    "STRATEGIES",
    "AllTokens",
    "Drawn",
    "FrameDifference",
    "FrameWise",
    "LearnedImportance",
    "RandomSpaceTime",
    "Ratio",
    "RatioOrZero",
    "RedundancyRobust",
    "RunningCell",
    "Strategy",
    "TokenGrid",
    "TokenSelection",
    "TopK",
    "Tube",
    "TubeDropout",
    "num_kept",
    "split",
]

# In fine-tuning, all kept tokens are encoded. The order is that of messages and figures.
FinetuneStrategy = RedundancyRobust | Drawn | FrameDifference | AllTokens | TubeDropout
ShippedStrategy = (
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
STRATEGIES: dict[str, type[ShippedStrategy]] = {each.strategy: each for each in get_args(ShippedStrategy)}

EXTERNAL = external(Strategy, "strategy")  # further annotations: a strategy of another package
StoredStrategy = Annotated[ShippedStrategy, Discriminator("strategy"), *EXTERNAL]
