"""Contradictions in a recipe: checks that need two or more settings at once."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite, log2
from typing import Final

import torch

from everest.config.layers import KeyPath
from everest.config.settings import ModelSettings, Recipe
from everest.config.sizes import LEAST_PLACES, TokenizerConfig, discriminator_halvings, rotary_channels
from everest.config.stage_checks import (
    Problems,
    channel_problems,
    input_problems,
    label_problems,
    partial_problems,
    view_problems,
)
from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.config.tokenizer import TokenizerSettings
from everest.errors import RecipeError, shown
from everest.methods.external import is_import_path
from everest.methods.grid import TokenGrid, check_num_tokens, num_kept
from everest.methods.ranked import ByImportance
from everest.methods.selector import Selector

MOST_CODE_BITS: Final = 32  # a code is stored in this many bits


def contradictions(recipe: Recipe) -> Problems:
    """Yields the key of each setting that contradicts another setting, and the reason."""
    yield from model_problems(recipe.model)
    yield from channel_problems(recipe)
    yield from label_problems(recipe)
    for stage, settings in recipe.stages:
        if settings.min_lr > settings.base_lr:
            yield (stage, "min_lr"), f"{settings.min_lr} is more than base_lr ({settings.base_lr})"
    for stage, settings in trained_stages(recipe):
        if settings.epochs is None and settings.steps is None:
            yield (stage, "epochs"), "is null, and so is steps; set one of them"
    pretrain, finetune = recipe.pretrain, recipe.finetune
    if (finetune.mixup or finetune.cutmix) and finetune.batch_size % 2:
        yield ("finetune", "batch_size"), f"{finetune.batch_size} is odd; mixup and cutmix need pairs"
    yield from partial_problems(recipe)
    yield from view_problems(recipe)
    if pretrain.probe.list is not None and (recipe.data.heads or recipe.data.task != "single-label"):
        text = "needs one class for each video, and data has other labels (data.task, data.heads)"
        yield ("pretrain", "probe", "list"), f"{text}; leave it out"
    for key, areas in (
        (("finetune", "crop_area"), finetune.crop_area),
        (("pretrain", "views", "crop_area"), pretrain.views.crop_area),
    ):
        if areas is not None and not 0 < areas[0] <= areas[1]:
            yield key, "must be two shares above 0, the smaller one first"
    if pretrain.frame_selection.alpha > 1 and not isinstance(pretrain.selection, ByImportance):
        text = f"above 1 it counts tokens by importance, which {pretrain.selection.strategy} does not measure"
        yield ("pretrain", "frame_selection", "alpha"), text
    if pretrain.target.cache is not None:
        yield from _cache_problems(pretrain)
    yield from input_problems(recipe)
    if recipe.tokenizer is not None:
        yield from _tokenizer(recipe, recipe.tokenizer)
    elif pretrain.needs_tokenizer:
        key = ("target", "kind") if pretrain.target.needs_tokenizer else ("selection", "score")
        text = "needs a tokenizer, and the recipe has no section of that name; start from lvmae-128"
        yield ("pretrain", *key), text
    yield from _token_counts(recipe)


def _cache_problems(pretrain: PretrainSettings) -> Problems:
    """Stored targets are of clips known before training."""
    key = ("pretrain", "target", "cache")
    if pretrain.teacher is not None and pretrain.selection.needs_tokenizer:
        yield key, "has the features of a teacher, and pretrain.selection needs the scores of a tokenizer"
    elif pretrain.objective == "views":
        yield key, "holds targets, and pretrain.objective=views has none; set pretrain.objective=pixels"
    elif pretrain.teacher is None and not pretrain.needs_tokenizer:
        yield key, "serves recipes whose targets or selection need a tokenizer or a teacher (lvmae-128)"
    elif pretrain.target.kind == "tokens" and pretrain.target.space == "soft":
        yield key, "has codes, not the vectors before rounding; set pretrain.target.space=values or codes"
    if pretrain.frame_selection.alpha > 1:
        yield key, "has the tokens of whole clips, and pretrain.frame_selection.alpha draws other frames"


def trained_stages(
    recipe: Recipe,
) -> Iterator[tuple[str, PretrainSettings | FinetuneSettings | TokenizerSettings]]:
    """Yields the stages that train, with their sections."""
    yield from recipe.stages
    if recipe.tokenizer is not None:
        yield "tokenizer", recipe.tokenizer


def model_problems(model: ModelSettings) -> Problems:
    """Yields the contradictions in the sizes of a transformer."""
    size = model.backbone_size
    if size.width % size.heads:
        yield ("model", "heads"), f"{size.heads} heads do not divide the width of {size.width}"
    if size.decoder_width % size.decoder_heads:
        text = f"{size.decoder_heads} heads do not divide the decoder's width of {size.decoder_width}"
        yield ("model", "decoder_heads"), text
    # Of the channels of separable positions a quarter encodes time and three eighths each height and width,
    # as sines and cosines.
    for key, width in (("width", size.width), ("decoder_width", size.decoder_width)):
        if model.positions in ("separable", "interpolated-separable") and width % 16:
            yield ("model", key), f"{width} is no multiple of 16, which separable positions need"
    for key, width, heads in (
        ("heads", size.width, size.heads),
        ("decoder_heads", size.decoder_width, size.decoder_heads),
    ):
        channels = width // heads
        if model.positions == "rotary" and (channels % 2 or not rotary_channels(channels)):
            text = f"{heads} heads of {channels} channels; rotary positions need an even number, 6 at least"
            yield ("model", key), text
    channels = size.width // size.heads
    if model.rotary != "none" and channels % 4:
        yield ("model", "heads"), f"{size.heads} heads of {channels} channels; rotary needs a multiple of 4"
    if model.rotary != "none" and model.positions == "rotary":
        yield ("model", "rotary"), "turns by places, and so does model.positions=rotary; set one of them"
    if model.mlp != "plain" and model.gelu != "exact":
        yield ("model", "gelu"), f"{model.gelu} has no effect: model.mlp={model.mlp} has no GELU"
    if model.embedding_layers > 1 and any(side % 4 for side in model.tubelet[1:]):
        text = "more than one convolution needs a tubelet whose rows and columns divide by 4"
        yield ("model", "embedding_layers"), text


def _tokenizer(recipe: Recipe, settings: TokenizerSettings) -> Problems:
    config, loss, size = settings.config, settings.loss, recipe.data.frame_size
    if not (loss.reconstruction or loss.perceptual):
        text = "is 0, like perceptual, so nothing is reconstructed; set one of them"
        yield ("tokenizer", "loss", "reconstruction"), text
    if loss.gan and not discriminator_halvings(config, size):
        pixels = round(2 * LEAST_PLACES * config.stem[1] / config.input_scale)
        text = f"clips of {size[0]} x {size[1]} pixels are too small for the discriminator, which halves them"
        yield ("tokenizer", "loss", "gan"), f"{text}; set it to 0, or data.size to {pixels} at least"
    if not isfinite(loss.discriminator_lr / settings.lr):  # the discriminator's rate is a multiple of it
        yield (
            ("tokenizer", "lr"),
            f"{settings.lr} is too small for a discriminator_lr of {loss.discriminator_lr}",
        )
    malformed = list(tokenizer_problems(settings))
    if malformed:  # the network has no grid then
        yield from ((("tokenizer", key), text) for key, text in malformed)
        return

    yield from _tokenizer_grid(recipe, settings, config)
    if recipe.data.frames % settings.frames:
        text = f"clips of {recipe.data.frames} frames do not divide into windows of {settings.frames}"
        yield ("tokenizer", "frames"), f"{text} (data.frames)"


def tokenizer_problems(settings: TokenizerSettings) -> Iterator[tuple[str, str]]:
    """Yields each contradiction in the sizes of a tokenizer's network: the key, and the problem."""
    config = settings.config
    halvings = len(config.multipliers) - 1
    if len(config.time_down) != halvings:
        text = f"{len(config.time_down)} values for {halvings} halvings, one between any two multipliers"
        yield "time_down", text
    time, pixels = config.stride
    if (pixels / config.input_scale) % 1:
        text = f"makes the {pixels} pixels of a token no integer number of pixels of the clip"
        yield "input_scale", f"{config.input_scale} {text}"
    if log2(config.num_codes) > MOST_CODE_BITS:
        yield "levels", f"{shown(config.num_codes)} codes; at most 2^{MOST_CODE_BITS}"
    # The first slice of a window is kept completely; the tokenizer selects from the others.
    if settings.frames % time or settings.frames < 2 * time:
        text = f"must be a multiple of {time} frames, the length of a token, and at least twice that"
        yield "frames", text


def _tokenizer_grid(recipe: Recipe, settings: TokenizerSettings, config: TokenizerConfig) -> Problems:
    """Each token of the model has one code, so model and tokenizer divide a clip in the same way."""
    if config.tubelet != recipe.model.tubelet:
        own, of_model = ("x".join(map(str, tubelet)) for tubelet in (config.tubelet, recipe.model.tubelet))
        text = f"its tokens are of {own} frames and pixels, the model's (model.tubelet) of {of_model}"
        yield ("tokenizer", "size"), f"{text}; set model.tubelet, or stem and multipliers here"
        return
    size = recipe.data.frame_size
    if any(side % step for side, step in zip(size, config.tubelet[1:], strict=True)):
        return  # `_token_counts` reports data.size
    grid = TokenGrid.of_clip(frames=settings.frames, size=size, tubelet=config.tubelet)
    ranked = grid.num_tokens - grid.per_slice
    if not num_kept(ranked, settings.keep):
        yield ("tokenizer", "keep"), f"{settings.keep} keeps none of a window's {ranked} ranked tokens"


def _token_counts(recipe: Recipe) -> Problems:
    """Both stages encode tokens; pre-training predicts tokens, fine-tuning does not."""
    data = recipe.data
    uncountable: list[tuple[KeyPath, str]] = []
    lengths = (data.frames, *data.frame_size)
    for key, length, step in zip(("frames", "size", "size"), lengths, recipe.model.tubelet, strict=True):
        if length % step:
            text = f"{length} is no multiple of the tubelet's {step} (model.tubelet)"
            uncountable.append((("data", key), text))
    for stage, settings in recipe.stages:
        uncountable += [((stage, "selection", key), text) for key, text in settings.selection.problems()]
    if uncountable:
        yield from uncountable
        return
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)
    try:
        check_num_tokens(grid)
    except RecipeError as error:
        yield ("data", "frames"), str(error)
        return
    for stage, settings in recipe.stages:
        selection = settings.selection
        try:
            visible, target = _num_chosen(selection, grid)
        except RecipeError as error:
            yield (stage, "selection"), str(error)
            return
        if not visible:
            verb = "lets the encoder see" if stage == "pretrain" else "keeps"
            fix = "raise keep_ratio" if getattr(selection, "visible_ratio", 0) is None else "keep more tokens"
            yield (stage, "selection"), f"{verb} none of {grid.num_tokens} tokens; {fix}"
        predicts = stage == "pretrain" and recipe.pretrain.objective == "pixels"
        if predicts and (not target or visible == grid.num_tokens):
            fix = (
                "; set visible_ratio below keep_ratio, or pretrain.objective=views, which predicts none"
                if getattr(selection, "visible_ratio", 0) is None
                else ""
            )
            yield (stage, "selection"), f"leaves none of {grid.num_tokens} tokens to predict{fix}"
        if stage == "finetune" and target:
            text = "belongs to pre-training: fine-tuning encodes all kept tokens; leave it out"
            key = "strategy" if is_import_path(selection.strategy) else "visible_ratio"
            yield (stage, "selection", key), text


def _num_chosen(selection: Selector, grid: TokenGrid) -> tuple[int, int]:
    """The numbers of visible and of target tokens. They do not depend on the data.

    Raises:
        RecipeError: a strategy of another package makes a choice for two clips that training cannot use.
    """
    blank = torch.empty(1, grid.num_tokens, device="meta")
    chosen = selection(grid, importance=blank, noise=blank)
    counts = (chosen.visible.size(1), chosen.target.size(1))
    if not is_import_path(selection.strategy):
        return counts
    drawn = torch.rand(2, grid.num_tokens, generator=torch.Generator().manual_seed(0))
    chosen = selection(grid, importance=drawn.flip(0), noise=drawn)
    try:
        chosen.check(grid, batch=2, predicts=bool(counts[1]))
    except ValueError as error:
        raise RecipeError(f"{selection.strategy} chooses wrong tokens: {error}") from error
    now = (chosen.visible.size(1), chosen.target.size(1))
    if now != counts:
        raise RecipeError(
            f"{selection.strategy} chooses {now} visible and predicted tokens, and {counts} on the meta "
            "device: their numbers may depend on the grid only"
        )
    return counts
