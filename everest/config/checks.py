"""What the settings of a tokenizer must agree on, among themselves and with the model of its recipe.

What two settings must agree on. Each check yields the key to name and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import log2

import torch

from everest.config.layers import STAGES, KeyPath
from everest.config.settings import TARGET_KEYS, FinetuneSettings, PretrainSettings, Recipe
from everest.config.sizes import LEAST_PLACES, TokenizerConfig, discriminator_halvings
from everest.config.tokenizer import TokenizerSettings
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, num_kept
from everest.methods.ranked import ByImportance
from everest.methods.selector import Selector

Problems = Iterator[tuple[KeyPath, str]]


MOST_CODE_BITS = 32  # a code is kept in so many
OF_TERM = {"r1": "gan", "discriminator_lr": "gan", "perceptual_weights": "perceptual"}  # of the loss


def tokenizer_problems(recipe: Recipe) -> Problems:
    """All that cannot be meant in `tokenizer`; nothing for a recipe without one."""
    yield from _cache(recipe)
    settings = recipe.tokenizer
    if settings is None:
        if recipe.pretrain.needs_tokenizer:
            text = "needs a tokenizer, and the recipe has no section of that name; start from lvmae-128"
            by_target = recipe.pretrain.target.needs_tokenizer
            yield ("pretrain", *(("target", "kind") if by_target else ("selection", "score"))), text
        return
    config = settings.config
    yield from _losses(recipe, settings, config)
    malformed = [*_network(config), *_window(settings, config)]
    yield from malformed
    if malformed:
        return
    yield from _same_tokens(recipe, config)
    if recipe.data.frames % settings.frames:
        text = f"clips of {recipe.data.frames} frames do not divide into windows of {settings.frames}"
        yield ("tokenizer", "frames"), f"{text} (data.frames)"


def idle_loss_settings(recipe: Recipe, given: Collection[tuple[str, ...]]) -> Iterator[str]:
    """A line for each key among those `given` by the user that belongs to a term of weight 0."""
    if recipe.tokenizer is None:
        return
    for key, term in OF_TERM.items():
        if not getattr(recipe.tokenizer.loss, term) and ("tokenizer", "loss", key) in given:
            yield f"tokenizer.loss.{key} has no effect where {term} is 0"


def _cache(recipe: Recipe) -> Problems:
    """What a cache has of a clip is all that is asked of its tokenizer, and the clip is known beforehand."""
    stage, key = recipe.pretrain, ("pretrain", "target", "cache")
    if stage.target.cache is None:
        return
    if not stage.needs_tokenizer:
        yield key, "serves recipes whose targets or selection need a tokenizer, such as lvmae-128"
    elif stage.target.kind == "tokens" and stage.target.space == "soft":
        yield key, "has codes, not the vectors before rounding; set pretrain.target.space=values or codes"
    if stage.frame_selection.alpha > 1:
        yield key, "has the tokens of whole clips, and pretrain.frame_selection.alpha draws other frames"


def _losses(recipe: Recipe, settings: TokenizerSettings, config: TokenizerConfig) -> Problems:
    loss, key = settings.loss, ("tokenizer", "loss")
    if not (loss.reconstruction or loss.perceptual):
        yield (*key, "reconstruction"), "with perceptual 0, too, nothing is to be rebuilt; set one of them"
    size = recipe.data.frame_size
    if loss.gan and not discriminator_halvings(config, size):
        pixels = round(2 * LEAST_PLACES * config.stem[1] / config.input_scale)
        text = f"clips of {size[0]} x {size[1]} pixels are too small for the discriminator, which halves them"
        yield (*key, "gan"), f"{text}; set it to 0, or data.size to {pixels} at least"


def _network(config: TokenizerConfig) -> Problems:
    halvings = len(config.multipliers) - 1
    if len(config.time_down) != halvings:
        text = f"{len(config.time_down)} values for {halvings} halvings, one between any two multipliers"
        yield ("tokenizer", "time_down"), text
    if (config.stride[1] / config.input_scale) % 1:
        text = f"{config.input_scale} does not make a whole number of pixels of a token's {config.stride[1]}"
        yield ("tokenizer", "input_scale"), text
    if log2(config.num_codes) > MOST_CODE_BITS:
        yield ("tokenizer", "levels"), f"{config.num_codes} codes; at most 2^{MOST_CODE_BITS}"


def _window(settings: TokenizerSettings, config: TokenizerConfig) -> Problems:
    """A window has a first slice, which is kept whole, and others to choose from."""
    time = config.stride[0]
    if settings.frames % time or settings.frames < 2 * time:
        text = f"must be a multiple of {time} frames, of which a token is made, and twice as many at least"
        yield ("tokenizer", "frames"), text


def _same_tokens(recipe: Recipe, config: TokenizerConfig) -> Problems:
    """A token of the model has one code: both cut clips alike."""
    if config.tubelet != recipe.model.tubelet:
        ours, theirs = ("x".join(map(str, tubelet)) for tubelet in (config.tubelet, recipe.model.tubelet))
        text = f"its tokens are of {ours} frames and pixels, those of model.tubelet of {theirs}"
        yield ("tokenizer", "size"), f"{text}; set model.tubelet, or stem and multipliers here"
        return
    assert recipe.tokenizer is not None
    size = recipe.data.frame_size
    if any(side % step for side, step in zip(size, config.tubelet[1:], strict=True)):
        return  # told of data.size
    grid = TokenGrid.of_clip(frames=recipe.tokenizer.frames, size=size, tubelet=config.tubelet)
    ranked = grid.num_tokens - grid.per_slice
    if not num_kept(ranked, recipe.tokenizer.keep):
        yield (
            ("tokenizer", "keep"),
            f"{recipe.tokenizer.keep} keeps none of a window's {ranked} ranked tokens",
        )


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
        *((("pretrain", "selection", key), text) for key, text in recipe.pretrain.selection.problems()),
        *((("finetune", "selection", key), text) for key, text in recipe.finetune.selection.problems()),
    ]
    yield from uncountable
    if not uncountable:
        yield from _tokens(recipe)


def notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """What is worth a word: keys `given` by the user that nothing reads, a run that only warms up."""
    if recipe.data.heads and ("data", "num_classes") in given:
        yield "data.num_classes has no effect with data.heads"
    target = recipe.pretrain.target
    for key in sorted(TARGET_KEYS - vars(target).keys()):
        if ("pretrain", "target", key) in given:
            yield f"pretrain.target.{key} has no effect with {target.kind}"
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
    if target:
        text = "belongs to pre-training: fine-tuning encodes all that is kept; leave it out"
        yield ("finetune", "selection", "visible_ratio"), text


def _num_chosen(selection: Selector, grid: TokenGrid) -> tuple[int, int]:
    """How many tokens are visible and how many are targets: the counts need no data."""
    blank = torch.empty(1, grid.num_tokens, device="meta")
    chosen = selection(grid, importance=blank, noise=blank)
    return chosen.visible.size(1), chosen.target.size(1)
