"""Notices about a recipe that is valid: settings without effect, and stages that mostly warm up."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from everest.config.checks import trained_stages
from everest.config.heads import named_heads
from everest.config.layers import KeyPath
from everest.config.settings import Recipe
from everest.config.stage_settings import TARGET_KEYS
from everest.methods.alignment import FEWEST_SLICES
from everest.methods.frame_selection import num_candidates
from everest.methods.ranked import ByChange

TERM_OF: Final = {"r1": "gan", "discriminator_lr": "gan", "perceptual_weights": "perceptual"}  # of the loss


def notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """Yields a line for each key in `given` without effect, and for each stage that mostly warms up."""
    for key, reason in _idle(recipe):
        if key in given:
            yield f"{'.'.join(key)} has no effect {reason}"
    yield from _idle_cuts(recipe)
    for stage, settings in trained_stages(recipe):
        unit = "epochs" if settings.steps is None else "steps"
        budget, warmup = getattr(settings, unit), getattr(settings, f"warmup_{unit}")
        key = f"{stage}.warmup_{unit}"
        fix = f"set {key}={min(max(1, budget // 10), budget - 1)}"
        if warmup is not None and warmup >= budget:
            yield f"{key} ({warmup}) leaves none of {budget} {unit}: the learning rate only rises; {fix}"
        elif warmup is not None and 2 * warmup > budget:
            yield f"{key} ({warmup}) is more than half of {budget} {unit}; a tenth is usual: {fix}"


def _idle(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key of each setting that has no effect, and with what or why."""
    data, target, probe = recipe.data, recipe.pretrain.target, recipe.pretrain.probe
    tasks = {head.task for head in named_heads(data.heads or {})} or {data.task}
    if data.heads:
        yield ("data", "num_classes"), "with data.heads"
    if tasks == {"regression"} and recipe.finetune.label_smoothing:
        yield ("finetune", "label_smoothing"), "on numbers"
    if recipe.pretrain.objective == "views":
        for key in sorted({*TARGET_KEYS, "kind"}):
            yield ("pretrain", "target", key), "with pretrain.objective=views"
        unused = {"contrast": "sigreg_weight", "sigreg": "temperature"}[recipe.pretrain.views.loss]
        yield ("pretrain", "views", unused), f"with pretrain.views.loss={recipe.pretrain.views.loss}"
        yield ("pretrain", "views_per_decode"), "with pretrain.objective=views; set pretrain.views.number"
        for key in ("decoder_depth", "decoder_width", "decoder_heads"):
            yield ("model", key), "in pre-training with pretrain.objective=views"
        yield ("train", "micro_batch"), "in pre-training with pretrain.objective=views: a step is one pass"
    else:
        for key in sorted(TARGET_KEYS - vars(target).keys()):
            yield ("pretrain", "target", key), f"with {target.kind}"
        for name in vars(recipe.pretrain.views):
            yield ("pretrain", "views", name), "if pretrain.objective is pixels"
    selection, frames = recipe.pretrain.selection, recipe.pretrain.frame_selection
    if not selection.uses_importance and frames.alpha == 1:
        for key in ("distance", "first_slice", "align", "cuts"):
            yield ("pretrain", "selection", key), "with uniform=1: the change of tokens does not count"
    for stage, settings in recipe.stages:
        if settings.sampling != "dense":
            yield (stage, "stride"), f"with {settings.sampling} sampling"
        for key in () if settings.lora.rank else ("alpha", "dropout", "layers"):
            yield (stage, "lora", key), f"if {stage}.lora.rank is 0"
    for key in () if probe.every else ("list", "metric"):
        yield ("pretrain", "probe", key), "if pretrain.probe.every is 0"
    if probe.every and probe.list is None:
        yield ("pretrain", "probe", "metric"), "without pretrain.probe.list"
    for stage, settings in trained_stages(recipe):
        unit, other = ("epochs", "steps") if settings.steps is None else ("steps", "epochs")
        yield (stage, f"warmup_{other}"), f"with {unit}; set {stage}.warmup_{unit}"
    loss = recipe.tokenizer and recipe.tokenizer.loss
    for key, term in TERM_OF.items():
        if loss is not None and not getattr(loss, term):
            yield ("tokenizer", "loss", key), f"if {term} is 0"


def _idle_cuts(recipe: Recipe) -> Iterator[str]:
    """Yields a line for each stage that looks for cuts in clips that are too short for it."""
    tubelet = recipe.model.tubelet[0]
    slices = recipe.data.frames // tubelet
    for stage, settings in recipe.stages:
        selection, count = settings.selection, slices
        if stage == "pretrain":
            count = num_candidates(slices, recipe.pretrain.frame_selection.alpha)
        if not isinstance(selection, ByChange) or selection.cuts == "ignore":
            continue
        if count * tubelet // selection.lag(tubelet) < FEWEST_SLICES:
            clips = f"clips of {count} slices (data.frames, model.tubelet)"
            yield f"{stage}.selection.cuts has no effect on {clips}"
