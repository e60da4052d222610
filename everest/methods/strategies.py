"""All strategies by their names. The contract of a strategy is in everest.methods.selector."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Discriminator

from everest.methods.external import external, is_import_path, named_class
from everest.methods.grid import TokenGrid as TokenGrid
from everest.methods.grid import TokenSelection as TokenSelection
from everest.methods.grid import num_kept as num_kept
from everest.methods.learned import LearnedImportance as LearnedImportance
from everest.methods.masks import AllTokens as AllTokens
from everest.methods.masks import FrameWise as FrameWise
from everest.methods.masks import Mask
from everest.methods.masks import RandomSpaceTime as RandomSpaceTime
from everest.methods.masks import RunningCell as RunningCell
from everest.methods.masks import Tube as Tube
from everest.methods.masks import TubeDropout as TubeDropout
from everest.methods.ranked import ByChange as ByChange
from everest.methods.ranked import ByImportance as ByImportance
from everest.methods.ranked import Drawn as Drawn
from everest.methods.ranked import FrameDifference as FrameDifference
from everest.methods.ranked import Ranked
from everest.methods.ranked import RedundancyRobust as RedundancyRobust
from everest.methods.selector import Selector as Selector
from everest.methods.selector import split as split

__all__ = [  # of everest.strategies
    *("STRATEGIES", "Selector", "TokenGrid", "TokenSelection", "num_kept", "split"),
    *("ByChange", "ByImportance", "Drawn", "FrameDifference", "LearnedImportance", "RedundancyRobust"),
    *("AllTokens", "FrameWise", "RandomSpaceTime", "RunningCell", "Tube", "TubeDropout"),
]

Strategy = Ranked | Mask | LearnedImportance
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
