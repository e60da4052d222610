"""The plan of a sweep: the resolved recipe of each arm, and the work of each arm and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from everest.checkpoints.start import find_init
from everest.checkpoints.teacher import absolute_teacher
from everest.config.merge import SET
from everest.config.recipe import recipe_for_run
from everest.config.settings import Recipe
from everest.data.stages import pretrain_key
from everest.errors import DataError, RecipeError, UserError, one_per_line
from everest.lists.stage import find_source, read_stage
from everest.sweep.budgets import Budgets, equalize
from everest.sweep.choices import AFTER, NO_INIT, Arm, StageName
from everest.sweep.metric_names import VALIDATION, headline
from everest.sweep.request import Equal, SweepRequest
from everest.sweep.works import Settings, Work, changed_settings, make_work
from everest.system.storage import join_location, parse_location
from everest.video.folders import no_list

Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """An arm with everything resolved."""

    name: str
    overrides: dict[str, str]  # by section.key, as they were written
    stages: tuple[StageName, ...]
    init: str  # of the first stage: an absolute path, the name of public weights, or none
    recipe: Recipe  # with the seed of the recipe
    works: dict[int, tuple[Work, ...]]  # by seed, in the order of the stages
    budgets: Budgets  # of arms with equal GMACs

    @property
    def settings(self) -> Settings:
        """The settings that are not at their defaults."""
        return changed_settings(self.recipe)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep with everything resolved."""

    request: SweepRequest
    arms: tuple[PlannedArm, ...]

    @property
    def header(self) -> dict[str, Any]:
        """The first keys of `sweep.yaml` and `results.json`."""
        return {
            "recipe": self.request.recipe.name,
            "summary": self.request.summary,
            "stages": list(self.request.stages),
            "seeds": list(self.request.seeds),
            "against": self.request.against,
            "equal": self.request.equal,
        }

    @cached_property
    def headline(self) -> str:
        """The metric that a report shows unless another is chosen: that of the arm `against`."""
        arm = next(arm for arm in self.arms if arm.name == self.request.against)
        key = "train" if {"finetune", "probe"} & set(arm.stages) else "test"
        is_labeled = arm.stages != ("pretrain",)
        names = read_stage(arm.recipe.data, key, labeled=True).class_names if is_labeled else None
        return headline(arm.recipe, arm.stages, names)

    def works(self) -> dict[str, Work]:
        """All work by its name, once each, seed by seed: a stopped sweep can already compare arms."""
        ordered = (work for seed in self.request.seeds for arm in self.arms for work in arm.works[seed])
        return {work.name: work for work in ordered}

    def users(self, work: Work) -> list[str]:
        """The names of the arms that need a work."""
        return [
            arm.name for arm in self.arms if work.name in {own.name for own in arm.works.get(work.seed, ())}
        ]


def make_plan(request: SweepRequest, *, data: str | None, notify: Notify) -> SweepPlan:
    """Resolve a sweep. Nothing is written.

    Args:
        data: the folder of lists and videos (`data.root`).
        notify: receives notices about the recipes, and the steps of each arm with equal GMACs.
    """
    base = _resolve(request, None, data, {})
    recipes = resolve_arms(request, data=data, notify=notify)
    stages = {arm.name: arm.stages or request.stages for arm in request.arms}
    with _named(request.label):
        for name, recipe in recipes.items():
            with _named(f"{name}: "):
                _check_data(recipe, stages[name])
        budgets: dict[str, Budgets] = {name: {} for name in recipes}
        if request.equal == "gmacs":
            recipes, budgets = equalize(recipes, stages, against=request.against, notify=notify)
        arms = tuple(
            _plan_arm(
                request,
                arm,
                stages[arm.name],
                recipes[arm.name],
                own_root=recipes[arm.name].data.root != base.data.root,
                budgets=budgets[arm.name],
            )
            for arm in request.arms
        )
        _refuse_same_jobs(arms, equal=request.equal)
    plan = SweepPlan(request=request, arms=arms)
    if plan.headline.startswith(VALIDATION) and any(arm.recipe.data.val is None for arm in arms):
        notify(
            f"the report compares {plan.headline}, which no job measures without data.val; set it, or add "
            "the stage eval"
        )
    return plan


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put the sweep file or the arm before the errors of the block."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}{error}") from error


def resolve_arms(request: SweepRequest, *, data: str | None, notify: Notify) -> dict[str, Recipe]:
    """The recipe of each arm by its name."""
    notices: dict[str, None] = {}
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    _resolve(request, None, data, notices)  # problems of all arms, without the name of one
    for arm in request.arms:
        try:
            recipes[arm.name] = _resolve(request, arm, data, notices)
        except RecipeError as error:
            lines = str(error).split("\n")
            problems += [f"{request.label}{arm.name}: {line.removeprefix(f'{SET}: ')}" for line in lines]
    if problems:
        raise RecipeError(one_per_line(problems))
    for notice in notices:
        notify(notice)
    return recipes


def _resolve(request: SweepRequest, arm: Arm | None, data: str | None, notices: dict[str, None]) -> Recipe:
    own = [f"{key}={text}" for key, text in ({} if arm is None else arm.overrides).items()]
    if any(text.partition("=")[0].strip() == "train.seed" for text in (*request.overrides, *own)):
        raise RecipeError("train.seed: a sweep sets it; give --seeds")
    has_root = arm is not None and "data.root" in arm.overrides
    return recipe_for_run(
        request.recipe,
        data=None if has_root else data,
        overrides=[*request.overrides, *own],
        notify=lambda text: notices.setdefault(text),
    )


def _check_data(recipe: Recipe, stages: tuple[StageName, ...]) -> None:
    """Raise DataError if a stage has no list or folder of videos, CheckpointError if it lacks its teacher."""
    reads: dict[StageName, tuple[str, ...]] = {
        "pretrain": (pretrain_key(recipe.data),),
        "finetune": ("train",),
        "eval": ("test",),
        "probe": ("train", "test"),
    }
    further: dict[StageName, tuple[str | None, ...]] = {
        "pretrain": (recipe.pretrain.probe.list if recipe.pretrain.probe.every else None,),
        "finetune": (recipe.data.val, recipe.data.classes),
    }
    root = parse_location(recipe.data.root)
    for stage in stages:
        if stage == "pretrain" and recipe.pretrain.teacher is not None:
            absolute_teacher(recipe.pretrain.teacher)
        for file in further.get(stage, ()):
            if file is not None and not (location := join_location(root, file)).exists():
                raise DataError(f"{no_list(location)}; {stage} reads it")
        for key in reads[stage]:
            location = find_source(recipe.data, key, labeled=stage != "pretrain")[0]
            if not location.exists():
                raise DataError(f"data.{key}: {no_list(location)}; set data.root by --data DIR")


def _refuse_same_jobs(arms: tuple[PlannedArm, ...], *, equal: Equal) -> None:
    """Raise RecipeError if two arms have the same jobs: their difference would be exactly 0."""
    seen: dict[tuple[str, ...], str] = {}
    for arm in arms:
        names = tuple(work.name for works in arm.works.values() for work in works)
        other = seen.setdefault(names, arm.name)
        if other != arm.name:
            scaled = " (equal: gmacs sets their steps)" if equal == "gmacs" else ""
            raise RecipeError(
                f"the arms '{other}' and '{arm.name}' have the same jobs: their settings are equal, or none "
                f"of the stages {', '.join(arm.stages)} depends on the difference{scaled}; leave one out"
            )


def _plan_arm(
    request: SweepRequest,
    arm: Arm,
    stages: tuple[StageName, ...],
    recipe: Recipe,
    *,
    own_root: bool,
    budgets: Budgets,
) -> PlannedArm:
    init = request.init if arm.init is None else arm.init
    if init != NO_INIT:
        with _named(f"{arm.name}: "):
            init = find_init(init, output=None, overwrite=False).name
    works: dict[int, tuple[Work, ...]] = {}
    for seed in request.seeds:
        seeded = replace(recipe, train=replace(recipe.train, seed=seed))
        made: dict[StageName, Work] = {}
        for stage in stages:
            needs = made.get(AFTER[stage]) if stage in AFTER else None
            made[stage] = make_work(stage, seeded, needs=needs, init=init, own_root=own_root)
        works[seed] = tuple(made.values())
    return PlannedArm(
        name=arm.name,
        overrides=arm.overrides,
        stages=stages,
        init=init,
        recipe=recipe,
        works=works,
        budgets=budgets,
    )
