"""Variants of a sweep whose training costs the same: their epochs follow from the cost of a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from everest.config.settings import Recipe
from everest.config.stage_settings import STAGES
from everest.config.values import StageName
from everest.errors import RecipeError
from everest.models.cost import count_macs
from everest.profiling.profile import make_stage_spec
from everest.profiling.timing import measure_stage
from everest_workflows.sweep.request import SweepRequest
from everest_workflows.sweep.sweep_jobs import resolve_variants

Cost = Literal["gmacs", "hours"]


def _clip_gmacs(recipe: Recipe, stage: StageName) -> float:
    """The GMACs of the forward pass of a clip, as in the report of a sweep."""
    return count_macs(make_stage_spec(recipe, stage)).total / 1e9


def _clip_seconds(recipe: Recipe, stage: StageName) -> float:
    """The seconds of a clip in a training step, measured on this machine without reading."""
    speed = measure_stage(recipe, stage)
    return speed.step_seconds / speed.batch


CLIP_COSTS: Final[dict[Cost, tuple[Callable[[Recipe, StageName], float], str]]] = {
    "gmacs": (_clip_gmacs, "GMACs of the forward passes in training"),
    "hours": (_clip_seconds, "time of the training steps on one machine"),
}


def with_equal_cost(request: SweepRequest, cost: Cost) -> SweepRequest:
    """Give each stage of the variants the epochs or steps with which it costs as much as in `against`."""
    recipes = resolve_variants(request, data=None)
    measure, meaning = CLIP_COSTS[cost]
    costs = {
        (variant.name, stage): measure(recipes[variant.name], stage)
        for variant in request.variants
        for stage in STAGES
        if stage in variant.stages
    }
    reference = recipes[request.against]
    variants = []
    for variant in request.variants:
        lengths = {}
        for stage in STAGES if variant.name != request.against else ():
            if {(variant.name, stage), (request.against, stage)} <= costs.keys():  # both have the stage
                ratio = costs[request.against, stage] / costs[variant.name, stage]
                key, length = _equal_length(reference, recipes[variant.name], stage, ratio)
                lengths[f"{stage}.{key}"] = length
        variants.append(replace(variant, overrides=variant.overrides | lengths))
    summary = f"{request.summary}; equal {meaning}".removeprefix("; ")
    return replace(request, variants=tuple(variants), summary=summary)


def _equal_length(reference: Recipe, recipe: Recipe, stage: StageName, ratio: float) -> tuple[str, int]:
    """The key and the value of the length of a stage whose clips cost 1 / `ratio` of the reference's."""
    of_reference, own = (getattr(each, stage) for each in (reference, recipe))
    if of_reference.epochs is not None and own.epochs is not None:
        return "epochs", max(1, round(of_reference.epochs * ratio))
    if of_reference.steps is not None and own.steps is not None:
        batches = of_reference.batch_size / own.batch_size
        return "steps", max(1, round(of_reference.steps * batches * ratio))
    raise RecipeError(f"--equal: {stage} has epochs in one variant and steps in another; set the same key")
