"""Short ways for notebooks: a model by its name, a clip of a file, the tokens a strategy chooses.

B batch, C channels, T frames, H W pixels, N tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from everest.config.checks import contradictions
from everest.config.layers import KeyPath
from everest.config.messages import retell
from everest.config.settings import Recipe
from everest.data.samples import Sample
from everest.data.views import ValidationViews
from everest.errors import RecipeError, unknown_name
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.importance import RawPixels
from everest.methods.strategies import ByImportance, Strategy, choose
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import classifier_spec, pretrain_spec

Size = int | tuple[int, int]

_STAGES = {"pretrain": "pretrain", "classifier": "finetune"}  # the section of a recipe behind each kind


def create_model(
    backbone: str,
    *,
    kind: Literal["pretrain", "classifier"],
    num_classes: int | Mapping[str, int] | None = None,
    frames: int = 16,
    size: Size = 224,
    selection: Strategy | None = None,
    **model: Any,
) -> MaskedAutoencoder | VideoClassifier:
    """A model with fresh weights.

    Args:
        backbone: vit-tiny, vit-s, vit-b, vit-l or vit-h.
        num_classes: of a classifier; a mapping such as {"verb": 97, "noun": 300} gives it a head for each.
        frames, size: of the clips; pixels as one number or (height, width).
        selection: a strategy of everest.selection; by default EVEREST's for the kind (Tables 7, 8).
        model: further keys of a recipe's `model` section, such as `tubelet` or `decoder_depth`.
    Raises:
        RecipeError: an unknown backbone or key, or values that cannot be meant, named as in a recipe.
        ValueError: a classifier without at least two classes.
    """
    if kind not in _STAGES:
        raise unknown_name("kind", kind, _STAGES)
    stage = _STAGES[kind]
    sections: dict[str, Any] = {
        "data": {"frames": frames, "size": size},
        "model": {"backbone": backbone, **model},
    }
    if selection is not None:
        sections[stage] = {"selection": asdict(selection)}
    recipe = _recipe(sections)
    _refuse_contradictions(recipe, lambda key: key[0] in ("data", "model", stage))
    if kind == "pretrain":
        return pretrain_spec(recipe).build()
    heads = num_classes if isinstance(num_classes, Mapping) else None
    sizes = [num_classes or 0] if not isinstance(num_classes, Mapping) else list(num_classes.values())
    if min(sizes, default=0) < 2:
        raise ValueError(f"a classifier needs num_classes of at least 2, not {num_classes}")
    spec = classifier_spec(recipe, num_classes=sum(sizes), heads=heads)
    # Stochastic depth belongs to the settings of a run, not to a model by its name.
    return replace(spec, drop_path=0.0).build()


def read_clip(path: str | Path, *, frames: int = 16, stride: int = 4, size: Size = 224) -> Tensor:
    """The middle `frames` frames of a video, `stride` apart, centre-cropped: (3, T, H, W) uint8.

    Raises:
        ValueError: a number below 1.
        VideoError: the file cannot be read.
    """
    both = (size, size) if isinstance(size, int) else size
    for name, value in (("frames", frames), ("stride", stride), ("size", min(both))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    views = ValidationViews(frames=frames, stride=stride, size=both, sampling="dense")
    nothing_drawn = np.random.default_rng(0)
    return views(Sample(path=str(path)), nothing_drawn, "auto").frames[0]


def select_tokens(
    x: Tensor,
    *,
    strategy: str = "redundancy-robust",
    keep: float | None = None,
    model: MaskedAutoencoder | VideoClassifier | None = None,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    seed: int = 0,
    **settings: Any,
) -> TokenSelection:
    """What a strategy chooses on normalised clips (B, C, T, H, W).

    Args:
        keep: the share of the tokens that is visible; None: as the strategy is set in a recipe.
        model: whose embedding measures the change, or whose tokenizer scores; None: the raw pixels.
        tubelet: of the raw pixels; a model has its own.
        settings: of the strategy, by their names in a recipe; they win over `keep`.
    Raises:
        RecipeError: an unknown strategy or setting, or values that cannot be meant.
        ValueError: `keep` is no share that leaves a token.
    """
    selector = _selector(strategy, keep, settings)
    embed = RawPixels(tubelet) if model is None else model.measure
    grid = TokenGrid.of_clip(frames=x.size(2), size=(x.size(3), x.size(4)), tubelet=embed.tubelet)
    noise = np.random.default_rng(seed).random((x.size(0), grid.num_tokens), dtype=np.float32)
    chosen = choose(selector, x, grid, embed, torch.from_numpy(noise).to(x.device))
    if chosen.visible.size(1) == 0:
        raise ValueError(f"{selector} leaves none of {grid.num_tokens} tokens visible")
    return chosen


def make_selector(strategy: str, *, kept: float | None, settings: Mapping[str, Any]) -> Strategy:
    """A strategy to look at.

    Args:
        kept: the share that is kept by a strategy that sorts by importance, of which a part is visible; of
            another strategy the share that is visible. None: as in a recipe.
    Raises:
        RecipeError: an unknown strategy or setting, or values that cannot be meant.
    """
    selector = _selector(strategy, None, settings)
    if kept is None:
        return selector
    if isinstance(selector, ByImportance):
        third = float(Decimal(str(kept)) / 3)  # of the number as written: 0.1 of 0.3, not a little less
        return replace(selector, keep_ratio=kept, visible_ratio=min(selector.visible_ratio or kept, third))
    return selector.keeping(kept)


def _selector(strategy: str, keep: float | None, settings: Mapping[str, Any]) -> Strategy:
    recipe = _recipe({"pretrain": {"selection": {"strategy": strategy, **settings}}})
    selector = recipe.pretrain.selection
    if keep is not None:
        given = {name: getattr(selector, name) for name in settings}
        selector = replace(selector.keeping(keep), **given)
    if settings:  # `keep` is checked already, and may be 1 where no recipe would mask nothing
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, selection=selector))
        # A setting's own key only: that pre-training predicts something is not asked of a choice to look at.
        _refuse_contradictions(recipe, lambda key: key[:2] == ("pretrain", "selection") and len(key) > 2)
    return selector


def _recipe(sections: dict[str, Any]) -> Recipe:
    """A recipe with these sections, all else by default; RecipeError names what is wrong."""
    try:
        return TypeAdapter(Recipe).validate_python({"name": "notebook", **sections})
    except ValidationError as error:
        raise _problems(retell(error)) from error


def _refuse_contradictions(recipe: Recipe, concerns: Callable[[KeyPath], bool]) -> None:
    found = [(key, text) for key, text in contradictions(recipe) if concerns(key)]
    if found:
        raise _problems(found)


def _problems(found: list[tuple[KeyPath, str]]) -> RecipeError:
    return RecipeError("\n".join(f"{'.'.join(key)}: {text}" for key, text in found))
