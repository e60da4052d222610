"""The options of `visualize-mask`: strategies with their titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final, Literal, NamedTuple

from everest.checkpoints.describe import trained_clip
from everest.checkpoints.load import LoadedModel
from everest.config.recipe import make_selector
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.methods.learned import LearnedImportance, ScoreName
from everest.methods.ranked import ByChange
from everest.methods.selector import Selector
from everest.methods.strategies import STRATEGIES, AllTokens
from everest.models.encoder import SelectingModel
from everest.models.views import ViewModel

DEFAULT_CLIP: Final = {"frames": 16, "stride": 4, "size": 224}
DEFAULT: Final = "redundancy-robust"
LEARNED: Final = LearnedImportance.strategy
COMPARED: Final = ("random", "tube", "running-cell", DEFAULT)  # EVEREST Figure 8
SCORES: Final[tuple[ScoreName, ...]] = ("frame-difference", "random", "learned")  # LVMAE Figure 3


class OwnChoices(NamedTuple):
    """The token selection of a checkpoint or a recipe, for each view with its title, and its clips."""

    selectors: list[tuple[str, Selector]]
    clip: dict[str, Any]  # fields of a MaskRequest


def own_choices(opened: LoadedModel) -> OwnChoices:
    """Return how a transformer was trained; of one that predicts no tokens, how it chooses after training."""
    module, clip = opened.transformer, trained_clip(opened)
    selector = module.selector
    if isinstance(module, SelectingModel):
        selector = selector.at_evaluation()
    trained = {} if clip is None else {"stride": clip.stride, "sampling": clip.sampling, "fps": clip.fps}
    views = module.settings.number if isinstance(module, ViewModel) else 1
    return OwnChoices(selectors=_by_view(selector, views), clip=trained)


def choices_of_recipe(recipe: Recipe, stage: Literal["pretrain", "finetune"]) -> OwnChoices:
    """Return how a stage of a recipe chooses tokens, and its clips."""
    settings, data, model = getattr(recipe, stage), recipe.data, recipe.model
    clip = {
        "frames": data.frames,
        "size": data.frame_size,
        "sampling": settings.sampling,
        "stride": settings.stride,
        "fps": data.fps,
        "tubelet": model.tubelet,
        "pixels": data.pixels,
        "input_kind": model.input,
    }
    views = 1
    if stage == "pretrain" and recipe.pretrain.objective == "views":
        views = recipe.pretrain.views.number
    return OwnChoices(selectors=_by_view(settings.selection, views), clip=clip)


def _by_view(selector: Selector, views: int) -> list[tuple[str, Selector]]:
    """A row for each view of a video (everest.models.views), which has a draw of its own."""
    if views == 1:
        return [(selector.strategy, selector)]
    return [(f"{selector.strategy}, view {number + 1}", selector) for number in range(views)]


def requested_selectors(
    strategy: str | None,
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    *,
    compared: bool,
    has_tokenizer: bool,
    trained: Selector | None = None,
) -> list[tuple[str, Selector]]:
    """Return the strategies to draw below each other, with their titles.

    Args:
        strategy: None: learned-importance for a tokenizer, else redundancy-robust.
        ratios: keep ratios; none: the strategy's default.
        settings: of the strategy, by their names in a recipe.
        trained: of a checkpoint or recipe; without a strategy, its settings are changed, if it measures
            change or only its keep ratio is changed.
        compared: draw the common strategies or, for a tokenizer, other scores next to its own.
    """
    if has_tokenizer and strategy not in (None, LEARNED):
        raise RecipeError(
            f"--strategy {strategy}: a tokenizer's scores choose by {LEARNED}; leave out --strategy, or "
            "--checkpoint"
        )
    name = LEARNED if has_tokenizer else strategy or DEFAULT
    values = dict(settings)
    keeps_strategy = isinstance(trained, ByChange) or not (settings or isinstance(trained, AllTokens))
    if strategy is None and not compared and trained is not None and keeps_strategy and not has_tokenizer:
        name, values = trained.strategy, {**vars(trained), **settings}
        del values["strategy"]
    known = {field.name for field in fields(STRATEGIES[name])} if name in STRATEGIES else values
    for option in settings:
        if compared:
            raise RecipeError(
                f"--{option.replace('_', '-')}: --compare shows each strategy as it is known; leave it out"
            )
        if option not in known:
            raise RecipeError(f"--{option.replace('_', '-')}: {name} has no such setting; leave it out")
    if name == LEARNED:  # tokens are kept by score, out of all tokens
        return [
            (score, LearnedImportance(mask_ratio=1.0, keep_ratio=ratio or 0.1, random_ratio=0.0, score=score))
            for ratio in ratios or [None]
            for score in (SCORES if compared else SCORES[-1:])
        ]
    if compared:
        if strategy is not None or len(ratios) > 1:
            raise RecipeError(
                "--compare shows the strategies of the field, with one share: leave out the others"
            )
        shares = dict.fromkeys(COMPARED) | {DEFAULT: ratios[0] if ratios else None}
        return [(each, _showing(each, share, {})) for each, share in shares.items()]
    chosen: list[tuple[str, Selector]] = []
    for ratio in ratios or [None]:
        selector, title = _showing(name, ratio, values), name
        if isinstance(selector, ByChange) and selector.sees_camera:  # next to one that does not
            camera = {"align": selector.align, "cuts": selector.cuts}
            chosen.append(("plain", replace(selector, align="none", cuts="ignore")))
            title = ", ".join(
                f"{key} {value}" for key, value in camera.items() if value != getattr(ByChange, key)
            )
        chosen.append((title, selector))
    return chosen


def _showing(strategy: str, kept: float | None, settings: Mapping[str, Any]) -> Selector:
    """A strategy that shows a share `kept` of the tokens; None: as in a recipe."""
    selector = make_selector(strategy, settings)
    return selector if kept is None else selector.showing(kept)
