"""What the settings of a tokenizer must agree on, among themselves and with the model of its recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import log2

from everest.config.settings import Recipe
from everest.config.tokenizer_settings import TokenizerSettings
from everest.methods.grid import TokenGrid, num_kept
from everest.tokenizer_sizes import LEAST_PLACES, TokenizerConfig, discriminator_halvings

Problems = Iterator[tuple[tuple[str, ...], str]]

MOST_CODE_BITS = 32  # a code is kept in so many
OF_TERM = {"r1": "gan", "discriminator_lr": "gan", "perceptual_weights": "perceptual"}  # of the loss


def tokenizer_problems(recipe: Recipe) -> Problems:
    """All that cannot be meant in `tokenizer`; nothing for a recipe without one."""
    yield from _cache(recipe)
    settings = recipe.tokenizer
    if settings is None:
        if recipe.pretrain.needs_tokenizer:
            text = "needs a tokenizer, and the recipe has no section of that name; start from lvmae-128"
            tokens = recipe.pretrain.target.kind == "tokens"
            yield ("pretrain", *(("target", "kind") if tokens else ("selection", "score"))), text
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
