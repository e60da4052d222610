"""What two settings must agree on. Each check yields the key to name and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields

import torch

from everest.config.recipe_layers import STAGES, KeyPath
from everest.config.settings import FinetuneSettings, PretrainSettings, Recipe
from everest.config.tokenizer_checks import idle_loss_settings, tokenizer_problems
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid
from everest.methods.masks import Tube
from everest.methods.ranked import LearnedImportance
from everest.methods.strategies import ByImportance, Selector, Strategy

Problems = Iterator[tuple[KeyPath, str]]


def contradictions(recipe: Recipe) -> Problems:
    """All pairs of settings that cannot both be meant."""
    yield from _heads_divide_width(recipe)
    yield from _positions(recipe)
    yield from _schedule("pretrain", recipe.pretrain)
    yield from _schedule("finetune", recipe.finetune)
    yield from _partners(recipe.finetune)
    yield from _crop_area(recipe.finetune)
    yield from _frame_selection(recipe.pretrain)
    yield from _embedding(recipe)
    yield from tokenizer_problems(recipe)
    uncountable = [
        *_tubelets_divide_clip(recipe),
        *_ratios("pretrain", recipe.pretrain.selection),
        *_ratios("finetune", recipe.finetune.selection),
    ]
    yield from uncountable
    if not uncountable:
        yield from _tokens(recipe)


def notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """What is worth a word: keys `given` by the user that nothing reads, a run that only warms up."""
    if recipe.data.heads and ("data", "num_classes") in given:
        yield "data.num_classes has no effect with data.heads"
    for stage, settings in zip(STAGES, (recipe.pretrain, recipe.finetune), strict=True):
        if settings.sampling != "dense" and (stage, "stride") in given:
            yield f"{stage}.stride has no effect with {settings.sampling} sampling"
        if settings.warmup_epochs >= settings.epochs:
            yield (
                f"{stage}.warmup_epochs ({settings.warmup_epochs}) leaves none of {settings.epochs} epochs: "
                "the learning rate only rises"
            )
    yield from idle_loss_settings(recipe, given)


def _tubelets_divide_clip(recipe: Recipe) -> Problems:
    lengths = (recipe.data.frames, *recipe.data.frame_size)
    keys = ("frames", "size", "size")
    for key, length, step in zip(keys, lengths, recipe.model.tubelet, strict=True):
        if length % step:
            yield ("data", key), f"{length} is no multiple of the tubelet's {step} (model.tubelet)"


def _heads_divide_width(recipe: Recipe) -> Problems:
    size = recipe.model.backbone_size
    if size.width % size.heads:
        yield ("model", "heads"), f"{size.heads} heads do not divide the width of {size.width}"
    if size.decoder_width % size.decoder_heads:
        text = f"{size.decoder_heads} heads do not divide the decoder's width of {size.decoder_width}"
        yield ("model", "decoder_heads"), text


def _positions(recipe: Recipe) -> Problems:
    """A quarter of the channels tells time, three eighths each of height and width, in sines and cosines."""
    size = recipe.model.backbone_size
    for key, width in (("width", size.width), ("decoder_width", size.decoder_width)):
        if recipe.model.positions == "separable" and width % 16:
            yield ("model", key), f"{width} is no multiple of 16, which separable positions need"


def _schedule(stage: str, settings: PretrainSettings | FinetuneSettings) -> Problems:
    if settings.min_lr > settings.base_lr:
        yield (stage, "min_lr"), f"{settings.min_lr} is more than base_lr ({settings.base_lr})"


def _crop_area(settings: FinetuneSettings) -> Problems:
    smallest, largest = settings.crop_area
    if not 0 < smallest <= largest:
        yield ("finetune", "crop_area"), "must be two shares above 0, the smaller one first"


def _partners(settings: FinetuneSettings) -> Problems:
    """Mixup and CutMix mix clips in pairs, so a batch must be even."""
    if (settings.mixup or settings.cutmix) and settings.batch_size % 2:
        yield ("finetune", "batch_size"), f"{settings.batch_size} is odd; mixup and cutmix need pairs"


def _ratios(stage: str, selection: Strategy) -> Problems:
    key = (stage, "selection")
    for field in fields(selection):
        value = getattr(selection, field.name)
        if field.name.endswith("_ratio") and value is not None and not 0 < value <= 1:
            yield (*key, field.name), f"must be more than 0 and at most 1, not {value}"
    if isinstance(selection, LearnedImportance) and selection.keep_ratio + selection.random_ratio > 1:
        text = f"{selection.random_ratio} and keep_ratio ({selection.keep_ratio}) are more than all tokens"
        yield (*key, "random_ratio"), text
    if isinstance(selection, ByImportance) and (selection.visible_ratio or 0) > selection.keep_ratio:
        text = f"{selection.visible_ratio} is more than keep_ratio ({selection.keep_ratio})"
        yield (*key, "visible_ratio"), text


def _frame_selection(settings: PretrainSettings) -> Problems:
    if settings.frame_selection.alpha > 1 and not isinstance(settings.selection, ByImportance):
        strategy = settings.selection.strategy
        text = f"above 1 it counts tokens by importance, which {strategy} does not measure"
        yield ("pretrain", "frame_selection", "alpha"), text


def _embedding(recipe: Recipe) -> Problems:
    model = recipe.model
    if model.embedding_layers > 1 and any(side % 4 for side in model.tubelet[1:]):
        text = "more than one convolution needs a tubelet whose rows and columns divide by 4"
        yield ("model", "embedding_layers"), text


def _tokens(recipe: Recipe) -> Problems:
    """Both stages encode something; pre-training predicts something, fine-tuning nothing."""
    data = recipe.data
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)
    try:
        visible, target = _num_chosen(recipe.pretrain.selection, grid)
    except RecipeError as error:
        yield ("pretrain", "selection"), str(error)
        return
    if not visible:
        yield ("pretrain", "selection"), f"lets the encoder see none of {grid.num_tokens} tokens"
    if not target:
        yield ("pretrain", "selection"), f"leaves none of {grid.num_tokens} tokens to predict"
    visible, target = _num_chosen(recipe.finetune.selection, grid)
    if not visible:
        yield ("finetune", "selection"), f"keeps none of {grid.num_tokens} tokens"
    if target and isinstance(recipe.finetune.selection, Tube):
        yield ("finetune", "selection", "keep_ratio"), "not set: the share of the places that is encoded"
    elif target:
        text = "belongs to pre-training: fine-tuning encodes all that is kept; leave it out"
        yield ("finetune", "selection", "visible_ratio"), text


def _num_chosen(selection: Selector, grid: TokenGrid) -> tuple[int, int]:
    """How many tokens are visible and how many are targets: the counts need no data."""
    blank = torch.empty(1, grid.num_tokens, device="meta")
    chosen = selection(grid, importance=blank, noise=blank)
    return chosen.visible.size(1), chosen.target.size(1)
