"""Notices about a recipe that is valid: settings without effect, and stages that mostly warm up."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from everest.config.checks import trained_stages
from everest.config.layers import STAGES, KeyPath
from everest.config.settings import Recipe
from everest.config.stage_checks import label_notices, partial_notices, probe_notices
from everest.config.stage_settings import TARGET_KEYS
from everest.methods.alignment import FEWEST_SLICES
from everest.methods.frame_selection import num_candidates
from everest.methods.ranked import ByChange

TERM_OF: Final = {"r1": "gan", "discriminator_lr": "gan", "perceptual_weights": "perceptual"}  # of the loss


def notices(recipe: Recipe, given: Collection[KeyPath]) -> Iterator[str]:
    """Yields a line for each key in `given` without effect, and for each stage that mostly warms up."""
    yield from label_notices(recipe, given)
    target = recipe.pretrain.target
    for key in sorted(TARGET_KEYS - vars(target).keys()):
        if ("pretrain", "target", key) in given:
            yield f"pretrain.target.{key} has no effect with {target.kind}"
    for stage, settings in zip(STAGES, (recipe.pretrain, recipe.finetune), strict=True):
        if settings.sampling != "dense" and (stage, "stride") in given:
            yield f"{stage}.stride has no effect with {settings.sampling} sampling"
    yield from _cut_notices(recipe)
    yield from partial_notices(recipe, given)
    yield from probe_notices(recipe, given)
    for stage, settings in trained_stages(recipe):
        unit, other = ("epochs", "steps") if settings.steps is None else ("steps", "epochs")
        budget, warmup = getattr(settings, unit), getattr(settings, f"warmup_{unit}")
        if warmup is not None and warmup >= budget:
            key = f"{stage}.warmup_{unit}"
            yield f"{key} ({warmup}) leaves none of {budget} {unit}: the learning rate only rises"
        elif warmup is not None and 2 * warmup > budget:
            key = f"{stage}.warmup_{unit}"
            fix = f"set {key}={max(1, budget // 10)}"
            yield f"{key} ({warmup}) is more than half of {budget} {unit}; a tenth is usual: {fix}"
        if (stage, f"warmup_{other}") in given:
            yield f"{stage}.warmup_{other} has no effect with {unit}; set {stage}.warmup_{unit}"
    if recipe.tokenizer is not None:
        for key, term in TERM_OF.items():
            if not getattr(recipe.tokenizer.loss, term) and ("tokenizer", "loss", key) in given:
                yield f"tokenizer.loss.{key} has no effect if {term} is 0"


def _cut_notices(recipe: Recipe) -> Iterator[str]:
    """Yields a line for each stage that looks for cuts in clips that are too short for it."""
    tubelet = recipe.model.tubelet[0]
    slices = recipe.data.frames // tubelet
    candidates = num_candidates(slices, recipe.pretrain.frame_selection.alpha)
    stages = ((recipe.pretrain.selection, candidates), (recipe.finetune.selection, slices))
    for stage, (selection, count) in zip(STAGES, stages, strict=True):
        if not isinstance(selection, ByChange) or selection.cuts == "ignore":
            continue
        if count * tubelet // selection.lag(tubelet) < FEWEST_SLICES:
            clips = f"clips of {count} slices (data.frames, model.tubelet)"
            yield f"{stage}.selection.cuts has no effect on {clips}"
