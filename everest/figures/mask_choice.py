"""The options of `visualize-mask`: strategies with their titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Final

from everest.config.selectors import make_selector
from everest.errors import RecipeError
from everest.methods.ranked import LearnedImportance, ScoreName
from everest.methods.strategies import STRATEGIES, Selector

USUAL: Final = "redundancy-robust"
LEARNED: Final = LearnedImportance.strategy
COMPARED: Final = ("random", "tube", "running-cell", USUAL)  # EVEREST Figure 8
SCORES: Final[tuple[ScoreName, ...]] = ("frame-difference", "random", "learned")  # LVMAE Figure 3

Titled = tuple[str, Selector]


def requested_selectors(
    strategy: str | None,
    shares: Sequence[float],
    settings: Mapping[str, str],
    *,
    compared: bool,
    has_tokenizer: bool,
) -> list[Titled]:
    """The strategies that are shown one below the other.

    Args:
        strategy: None: of a tokenizer learned-importance, else redundancy-robust.
        shares: of the tokens that are kept; none: as in a recipe.
        settings: of the strategy, by their names in a recipe.
        compared: show the strategies of the field or, of a tokenizer, scores to compare with its own.
    Raises:
        RecipeError: an unknown strategy or setting, or options that do not go together.
    """
    if has_tokenizer and strategy not in (None, LEARNED):
        raise RecipeError(
            f"--strategy {strategy}: a tokenizer's scores choose by {LEARNED}; leave out --strategy, or "
            "--checkpoint"
        )
    name = LEARNED if has_tokenizer else strategy or USUAL
    _refuse_settings(settings, name, compared=compared)
    kept: Sequence[float | None] = shares or [None]
    if name == LEARNED:
        return _scored(kept, SCORES if compared else ("learned",))
    if not compared:
        return _stacked(name, kept, settings)
    if strategy is not None or len(kept) > 1:
        raise RecipeError("--compare shows the strategies of the field, with one share: leave out the others")
    return _of_the_field(kept[0])


def _refuse_settings(settings: Mapping[str, str], strategy: str, *, compared: bool) -> None:
    known = {field.name for field in fields(STRATEGIES[strategy])} if strategy in STRATEGIES else settings
    for name in settings:
        if compared:
            raise RecipeError(f"--{name}: --compare shows each strategy as it is known; leave it out")
        if name not in known:
            raise RecipeError(f"--{name}: {strategy} has no such setting; leave it out")


def _scored(shares: Sequence[float | None], scores: Sequence[ScoreName]) -> list[Titled]:
    """Selectors that keep tokens by score, out of all tokens."""
    return [
        (
            score if share is None else f"{score}\n{share:g} kept",
            LearnedImportance(mask_ratio=1.0, keep_ratio=share or 0.1, random_ratio=0.0, score=score),
        )
        for share in shares
        for score in scores
    ]


def _stacked(strategy: str, shares: Sequence[float | None], settings: Mapping[str, str]) -> list[Titled]:
    return [
        (
            strategy if share is None else f"{strategy}\n{share:g} kept",
            make_selector(strategy, kept=share, settings=settings),
        )
        for share in shares
    ]


def _of_the_field(share: float | None) -> list[Titled]:
    kept = dict.fromkeys(COMPARED) | {USUAL: share}
    return [(name, make_selector(name, kept=share, settings={})) for name, share in kept.items()]
