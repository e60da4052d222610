"""Equal compute: the steps of each arm are scaled so that its forward passes cost as much as one arm's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from everest.config.settings import Recipe
from everest.engine.tokenizer_first import with_absolute_paths
from everest.errors import RecipeError
from everest.models.cost import count_frozen_macs, count_macs
from everest.models.spec import ModelSpec
from everest.profiling.profile import stage_spec
from everest.sweep.choices import StageName


class Budget(NamedTuple):
    """The steps of a stage before and after they are scaled."""

    steps_before: int
    steps: int
    warmup_before: int | None  # None: a share of the steps
    warmup: int | None
    batch_size: int
    gmacs_of_clip: float

    def text(self) -> str:
        """The change in a few words."""
        ratio = f", x {self.steps / self.steps_before:.3g}" if self.steps != self.steps_before else ""
        warmup = "" if self.warmup is None else f", warm-up {self.warmup_before} -> {self.warmup}"
        return (
            f"{self.steps_before} -> {self.steps} steps{ratio} ({self.gmacs_of_clip:.4g} GMACs a clip, batch "
            f"{self.batch_size}){warmup}"
        )


Budgets = dict[str, Budget]  # of an arm, by the stages that are scaled


def macs_of_clip(spec: ModelSpec) -> int:
    """Multiply-accumulates of a clip's forward pass, with the part of a tokenizer that the step runs."""
    return count_macs(spec).total + (count_frozen_macs(spec) or 0)


def equalize(
    recipes: Mapping[str, Recipe],
    stages: Mapping[str, tuple[StageName, ...]],
    *,
    against: str,
    notify: Callable[[str], None],
) -> tuple[dict[str, Recipe], dict[str, Budgets]]:
    """Return the recipes of the arms with scaled steps of pre-training and fine-tuning, and the changes.

    Steps of a given warm-up are scaled alike. The arm `against` keeps its steps, or the first arm with that
    stage if `against` has none. If all arms cost the same, nothing is changed.

    Args:
        recipes, stages: by the names of the arms.
    """
    changed = dict(recipes)
    budgets: dict[str, Budgets] = {name: {} for name in recipes}
    for stage in ("pretrain", "finetune"):
        names = [name for name in recipes if stage in stages[name]]
        if not names:
            continue
        first = against if against in names else names[0]
        sections = {name: getattr(recipes[name], stage) for name in names}
        costs = {name: macs_of_clip(stage_spec(with_absolute_paths(recipes[name]), stage)) for name in names}
        kept = sections[first]
        for name in (name for name in recipes if name not in names):
            notify(
                f"{name}: costs fewer GMACs, because it has no {stage} and its other stages get no more steps"
            )
        amounts = {(costs[n], s.epochs, s.steps and s.steps * s.batch_size) for n, s in sections.items()}
        if len(amounts) == 1:
            cost = f"{costs[first] / 1e9:.4g} GMACs a clip, and train on as many clips"
            notify(f"{stage}: all arms cost {cost}; equal: gmacs changes nothing")
            continue
        for name in names:
            if sections[name].steps is None:
                raise RecipeError(
                    f"{name}: {stage}.epochs: arms of equal GMACs need steps; set {stage}.steps for all arms"
                )
        budget = kept.steps * kept.batch_size * costs[first]
        for name in names:
            section, warmup = sections[name], sections[name].warmup_steps
            steps = max(1, round(budget / (section.batch_size * costs[name])))
            if name == first:
                steps = section.steps
            elif warmup is not None:
                warmup = round(warmup * steps / section.steps)
            scaled = replace(section, steps=steps, warmup_steps=warmup)
            changed[name] = replace(changed[name], **{stage: scaled})
            budgets[name][stage] = Budget(
                *(section.steps, steps, section.warmup_steps, warmup),
                batch_size=section.batch_size,
                gmacs_of_clip=costs[name] / 1e9,
            )
            notify(f"{name}: {stage} {budgets[name][stage].text()}")
    return changed, budgets
