"""As many tokens as the content of a clip needs: those with an importance above a threshold. Ours.

A keep ratio gives every clip the same number of tokens, and a threshold gives a busy clip more than a still
one. A clip keeps whole parts of its tokens, the most important first, and at least one part. So its number
depends on the clip alone, and clips of a batch that keep equally many are one forward pass, without padding.

B batch, N tokens, P parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid
from everest.methods.ranked import ByImportance, RedundancyRobust
from everest.methods.selector import Selector
from everest.methods.strategies import AllTokens

PARTS: Final = 32  # our choice: so few that several clips of a batch keep equally many tokens


@dataclass(frozen=True, slots=True)
class Above:
    """Keep the parts whose most important token is above a threshold, in place of a keep ratio."""

    threshold: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise RecipeError(f"--keep-above {self.threshold}: must be a finite number")


Keep = float | Above | None  # the tokens that a model encodes; None: as trained


def ranking(selector: Selector) -> ByImportance:
    """The strategy that ranks the tokens of a trained model; for one that keeps all, redundancy-robust.

    Raises:
        RecipeError: the strategy of the model ranks no tokens, or the least important first.
    """
    found = selector.at_evaluation()
    if isinstance(found, AllTokens):
        return RedundancyRobust(visible_ratio=None)
    if not isinstance(found, ByImportance) or found.order == "ascending":
        raise RecipeError(
            f"--keep-above: {found.strategy} of this model does not keep the most important tokens; "
            "give --keep"
        )
    return found


def part_size(grid: TokenGrid) -> int:
    """The tokens of a part; the last part of a clip may have fewer."""
    return -(-grid.num_tokens // PARTS)


def part_levels(grid: TokenGrid, importance: Tensor) -> Tensor:
    """Sort the importance (B, N) and return that of each part's first token, (B, P), in descending order.

    `num_above` needs nothing else, for any threshold.
    """
    return importance.sort(dim=1, descending=True).values[:, :: part_size(grid)]


def num_above(grid: TokenGrid, levels: Tensor, above: Above) -> Tensor:
    """(B,) int64: the number of tokens that each clip keeps."""
    parts = (levels > above.threshold).sum(dim=1).clamp(min=1)
    return (parts * part_size(grid)).clamp(max=grid.num_tokens)


def threshold_of_mean(levels: NDArray[np.float32], keep: float) -> float:
    """The threshold with which clips keep a share `keep` of their tokens on average.

    It is exact up to one part of one clip; if tokens are equally important, the share may be smaller.

    Args:
        levels: (clips, P) of `part_levels`.
    """
    others = levels[:, 1:] if levels.shape[1] > 1 else levels  # the first part is always kept
    ordered = np.sort(others, axis=None)[::-1]
    number = round(keep * levels.size) - len(levels)
    return float(ordered[min(max(number, 0), ordered.size - 1)])
