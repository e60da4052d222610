"""Contradictions between the settings of a valid recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from everest.config.heads import BEST_METRICS_OF_TASK, named_heads
from everest.config.settings import Recipe
from everest.config.stage_settings import AutoencoderSettings, ViewPretrainSettings
from everest.config.tokenizer_settings import TokenizerSettings
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, check_num_tokens, num_kept
from everest.methods.selection import Strategy, TopK
from everest.methods.targets import TokenTargets

Problem = tuple[str, str]  # a key with dots, and what is wrong


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Yields the `section.key` of each setting that contradicts another setting, and the reason."""
    yield from ((f"model.{key}", text) for key, text in recipe.model.problems())
    yield from _data_contradictions(recipe)
    yield from _training_contradictions(recipe)
    if isinstance(recipe.pretrain, AutoencoderSettings):
        yield from _target_contradictions(recipe, recipe.pretrain)
    if recipe.tokenizer is not None:
        yield from _tokenizer_contradictions(recipe, recipe.tokenizer)
    yield from _token_contradictions(recipe)


def _data_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions about channels, differences of frames as input, and labels."""
    data, pretrain, finetune = recipe.data, recipe.pretrain, recipe.finetune
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != data.channels:
            text = f"{len(values)} values, and data.channels is {data.channels}; give one for each channel"
            yield f"data.{key}", text
    if data.channels == 1 and (recipe.tokenizer is not None or pretrain.needs_tokenizer):
        yield "data.channels", "1 does not go with a tokenizer, which codes colors; set it to 3"
    if data.channels == 1 and isinstance(pretrain, AutoencoderSettings) and pretrain.target.is_external:
        kind = pretrain.target.kind
        yield "data.channels", f"1 does not go with {kind}, a target of another package; set it to 3"

    differences = recipe.model.input == "differences"
    for key, is_used in (("pretrain.camera_motion", pretrain.camera_motion), ("model.input", differences)):
        if is_used and data.frames < 2:
            yield key, "needs clips of at least two frames (data.frames)"
    if differences and pretrain.needs_tokenizer:
        yield "model.input", "must be frames with a tokenizer, which makes its scores and targets of them"
    if differences and pretrain.frame_selection.alpha > 1:
        yield "model.input", "must be frames with pretrain.frame_selection.alpha, whose frames have gaps"

    heads = named_heads(data.heads or {})
    tasks = [head.task for head in heads] or [data.task]
    if "regression" in tasks and finetune.cutmix:
        yield "finetune.cutmix", "cannot mix numbers: half of a frame has no half of a number; set it to 0"
    # Several heads: top1 counts videos whose heads are all right, if each head names a class.
    known = BEST_METRICS_OF_TASK[data.task]
    if heads:
        known = ("top1", "loss") if {*tasks} == {"single-label"} else ("loss",)
    if finetune.best is not None and finetune.best not in known:
        yield "finetune.best", f"{finetune.best} is not measured for these labels; known: {', '.join(known)}"


def _training_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions about learning rates, training length, crops, frozen layers and views."""
    pretrain, finetune, depth = recipe.pretrain, recipe.finetune, recipe.model.backbone_size.depth
    views = pretrain.views if isinstance(pretrain, ViewPretrainSettings) else None
    crops = {"finetune.crop_area": finetune.crop_area, "pretrain.views.crop_area": views and views.crop_area}
    for key, area in crops.items():
        if area is not None and not 0 < area[0] <= area[1]:
            yield key, "must be two fractions above 0, the smaller one first"
    tokenizer = () if recipe.tokenizer is None else (("tokenizer", recipe.tokenizer),)
    for stage, section in (*recipe.stages, *tokenizer):
        if (section.epochs is None) == (section.steps is None):
            yield f"{stage}.steps", "give either epochs or steps"
    for stage, section in recipe.stages:
        if section.min_lr > section.base_lr:
            yield f"{stage}.min_lr", f"{section.min_lr} is more than base_lr ({section.base_lr})"
    if finetune.frozen_layers(depth) > 1 + depth:
        yield "finetune.freeze", f"{finetune.freeze} is more than the encoder's {depth} blocks"
    if finetune.lora.rank and finetune.freeze != "none":
        text = f"is {finetune.freeze}, and finetune.lora freezes the whole encoder; leave one of them out"
        yield "finetune.freeze", text
    if views is None:
        return
    if pretrain.selection.needs_tokenizer:
        yield "pretrain.selection", "needs a tokenizer, which pretrain.objective=views does not run"
    if pretrain.batch_size < 2 * views.number or pretrain.batch_size % views.number:
        text = f"{pretrain.batch_size} clips are not two or more videos of {views.number} views"
        yield "pretrain.batch_size", f"{text} (pretrain.views.number)"
    if recipe.data.clips_per_video != 1:  # two clips of a video would be compared as of different videos
        text = "must be 1 with pretrain.objective=views; list windows of long videos (prepare windows)"
        yield "data.clips_per_video", text


def _target_contradictions(recipe: Recipe, section: AutoencoderSettings) -> Iterator[Problem]:
    """Contradictions about frame selection, and about stored targets, whose clips are fixed in advance."""
    draws, strategy = section.frame_selection.alpha > 1, section.selection
    if section.needs_tokenizer and recipe.tokenizer is None:
        key = "target.kind" if section.target.needs_tokenizer else "selection.score"
        yield f"pretrain.{key}", "needs a tokenizer, and the recipe has no such section; start from lvmae-128"
    if draws and not isinstance(strategy, TopK):
        text = f"above 1 it counts tokens by importance, which {strategy.strategy} does not measure"
        yield "pretrain.frame_selection.alpha", text
    if draws and not section.has_decoder:
        yield "pretrain.frame_selection.alpha", "must be 1 with pretrain.target.teacher=start"
    if section.cache is None:
        return
    key = "pretrain.target.cache"
    if not section.needs_tokenizer:
        yield key, "serves recipes whose targets or selection need a tokenizer (lvmae-128)"
    elif isinstance(section.target, TokenTargets) and section.target.space == "soft":
        yield key, "has codes, not the vectors before rounding; set pretrain.target.space=values or codes"
    if draws:
        yield key, "stores tokens of whole clips, but pretrain.frame_selection.alpha draws other frames"
    if section.camera_motion and strategy.needs_tokenizer:
        text = "needs scores of moved clips, which pretrain.target.cache does not store; leave one out"
        yield "pretrain.camera_motion", text


def _tokenizer_contradictions(recipe: Recipe, section: TokenizerSettings) -> Iterator[Problem]:
    """Contradictions about the tokenizer: its network, and its tokens next to the model's."""
    config, size = section.config, recipe.data.frame_size
    malformed = list(config.problems(section.frames))
    yield from ((f"tokenizer.{key}", text) for key, text in malformed)
    if malformed:  # such a network has no grid
        return
    if recipe.data.frames % section.frames:
        text = f"clips of {recipe.data.frames} frames do not divide into chunks of {section.frames}"
        yield "tokenizer.frames", f"{text} (data.frames)"
    # Each token of the model has one code, so model and tokenizer divide a clip in the same way.
    if config.tubelet != recipe.model.tubelet:
        tubelets = (config.tubelet, recipe.model.tubelet)
        coded, embedded = ("x".join(map(str, tubelet)) for tubelet in tubelets)
        text = f"its tokens are of {coded} frames and pixels, the model's (model.tubelet) of {embedded}"
        yield "tokenizer.size", f"{text}; set model.tubelet"
    elif not any(side % step for side, step in zip(size, config.tubelet[1:], strict=True)):
        grid = TokenGrid.of_clip(frames=section.frames, size=size, tubelet=config.tubelet)
        ranked = grid.num_tokens - grid.num_positions
        if not num_kept(ranked, section.keep):
            yield "tokenizer.keep", f"{section.keep} keeps none of a chunk's {ranked} ranked tokens"


def _check_external(strategy: Strategy, counted: object, grid: TokenGrid) -> None:
    """Check a strategy of another package: what it `counted` without numbers, and its tokens of two clips."""
    name = strategy.strategy
    if not isinstance(counted, TokenSelection):
        raise RecipeError(f"{name} returns {type(counted).__name__}; return an everest.TokenSelection")
    if not (counted.visible.dim() == counted.predicted.dim() == 2):
        shapes = f"{tuple(counted.visible.shape)} and {tuple(counted.predicted.shape)}"
        raise RecipeError(f"{name} returns ids of shape {shapes}, not (B, K) and (B, M)")
    sampled = torch.rand(2, grid.num_tokens, generator=torch.Generator().manual_seed(0))
    chosen = strategy(grid, importance=sampled, noise=sampled)
    try:
        chosen.check(grid, batch=2, predicts=bool(counted.predicted.size(1)))
    except ValueError as error:
        raise RecipeError(f"{name} chooses wrong tokens: {error}") from error


def _token_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Contradictions about the numbers of tokens that the stages encode and pre-training predicts."""
    data, uncountable = recipe.data, list[Problem]()
    lengths = (data.frames, *data.frame_size)
    for name, length, step in zip(("frames", "size", "size"), lengths, recipe.model.tubelet, strict=True):
        if length % step:
            text = f"{length} is no multiple of the tubelet's {step} (model.tubelet)"
            uncountable.append((f"data.{name}", text))
    for stage, section in recipe.stages:
        uncountable += [(f"{stage}.selection.{key}", text) for key, text in section.selection.problems()]
    if uncountable:
        yield from uncountable
        return
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)
    key = "data.frames"
    try:
        check_num_tokens(grid)
        blank = torch.empty(1, grid.num_tokens, device="meta")  # the numbers do not depend on the data
        for stage, section in recipe.stages:
            key, strategy = f"{stage}.selection", section.selection
            selection = strategy(grid, importance=blank, noise=blank)
            if strategy.is_external:
                _check_external(strategy, selection, grid)
            visible, target = selection.visible.size(1), selection.predicted.size(1)
            splits = getattr(strategy, "visible_ratio", 0) is not None
            if not visible:
                verb = "lets the encoder see" if stage == "pretrain" else "keeps"
                fix = "keep more tokens" if splits else "raise keep_ratio"
                yield key, f"{verb} none of {grid.num_tokens} tokens; {fix}"
            has_decoder = isinstance(section, AutoencoderSettings) and section.has_decoder
            if has_decoder and (not target or visible == grid.num_tokens):
                fix = "set visible_ratio below keep_ratio, or pretrain.objective=views, which predicts none"
                text = f"leaves none of {grid.num_tokens} tokens to predict"
                yield key, text if splits else f"{text}; {fix}"
            if isinstance(section, AutoencoderSettings) and not has_decoder and target:
                text = "hides tokens, and pretrain.target.teacher=start compares the encoded ones"
                yield key, f"{text}; set visible_ratio to null, or another strategy"
            if stage == "finetune" and target:
                text = "belongs to pre-training: fine-tuning encodes all kept tokens; leave it out"
                yield f"{key}.{'strategy' if strategy.is_external else 'visible_ratio'}", text
    except RecipeError as error:
        yield key, str(error)
