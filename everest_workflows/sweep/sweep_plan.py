"""The plan of a sweep: the recipe of each arm, and the jobs of each arm and seed.

A job is a training run or an evaluation, identified by the settings that it depends on. Arms that differ
only in later stages share the jobs of earlier ones, such as one pre-training for each seed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from everest.checkpoints.frozen import with_absolute_paths
from everest.checkpoints.init import check_init, find_init
from everest.config.recipe import RESUME_MAY_CHANGE, flat_values, recipe_for_run, recipe_values
from everest.config.settings import Recipe
from everest.config.stage_settings import STAGES, PretrainSettings
from everest.data.recipe_clips import pretrain_key
from everest.errors import DataError, RecipeError, UserError, one_per_line
from everest.lists.sources import find_source
from everest.system.storage import join_location, parse_location
from everest.video.folders import not_found_text
from everest_workflows.sweep.request import FROM_SCRATCH, REQUIRED_STAGE, Arm, SweepRequest, SweepStage

KEY_LETTERS: Final = 12  # of a SHA-256; enough to tell any number of jobs apart
SEED_PLACE: Final = "{seed}"  # in a name of weights
STARTS_FROM: Final[dict[SweepStage, SweepStage]] = {**REQUIRED_STAGE, "finetune": "pretrain"}
_LABEL_KEYS: Final = ("data.val", "data.test", "data.classes", "data.num_classes", "data.task", "data.heads")
# The prefixes of the keys that a stage reads, and the exceptions among these keys.
_KEYS_READ: Final[dict[SweepStage, tuple[str, ...]]] = {
    "pretrain": ("data.", "model.", "train.", "tokenizer", "pretrain."),
    "finetune": ("data.", "model.", "train.", "finetune."),
    "eval": ("data.", "train.", "eval."),
    "probe": ("data.", "train.", "finetune.stride", "finetune.sampling", "finetune.selection"),
}
_KEYS_IGNORED: Final[dict[SweepStage, tuple[str, ...]]] = {
    "pretrain": _LABEL_KEYS,
    "finetune": ("data.pretrain", "data.test"),
    "eval": ("data.pretrain",),
    "probe": ("data.pretrain", "data.val"),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run or an evaluation."""

    stage: SweepStage
    key: str  # its folder or file
    seed: int
    recipe: Recipe  # its train.seed is `seed`
    needs: Job | None  # the stage before, whose weights it reads
    init: str  # weights that the first stage starts from, or none

    @property
    def name(self) -> str:
        """Its path in the folder of a sweep."""
        return f"{self.stage}/{self.key}"

    def file(self, folder: Path, ending: str) -> Path:
        """A file next to the run: its recipe (yaml), messages (log), result of an evaluation (json)."""
        return folder / self.stage / f"{self.key}.{ending}"

    def command(self, folder: Path, *, gpus: str) -> list[str]:
        """The words of the job's command, after `everest`."""
        start = self.init if self.needs is None else str(folder / self.needs.name)
        options = ["--recipe", str(self.file(folder, "yaml")), "--data", self.recipe.data.root]
        if self.stage not in STAGES:
            return [self.stage, "--checkpoint", start, *options, "--json", "--gpus", gpus]
        init = ["--init", start] if self.stage == "finetune" or start != FROM_SCRATCH else []
        return [self.stage, *options, *init, "--output", str(folder / self.name), "--gpus", gpus]


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """An arm, with the jobs of each seed."""

    name: str
    overrides: dict[str, str]  # by section.key, as they were written
    stages: tuple[SweepStage, ...]
    init: str  # weights of the first stage, with SEED_PLACE if each seed has its own
    jobs: dict[int, tuple[Job, ...]]  # by seed, in the order of the stages


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep, with all jobs of its arms."""

    request: SweepRequest
    arms: tuple[PlannedArm, ...]

    def jobs(self) -> dict[str, Job]:
        """All jobs by their names, once each, seed by seed: a stopped sweep can already compare arms."""
        ordered = (job for seed in self.request.seeds for arm in self.arms for job in arm.jobs[seed])
        return {job.name: job for job in ordered}

    def users(self, job: Job) -> list[str]:
        """The names of the arms that need a job."""
        return [arm.name for arm in self.arms if job.name in {each.name for each in arm.jobs[job.seed]}]


def plan_sweep(request: SweepRequest, *, data: str | None) -> SweepPlan:
    """Plan the jobs of a sweep on the videos and lists in the folder `data` (`data.root`); writes nothing."""
    recipes = resolve_arms(request, data=data)
    arms = []
    seen: dict[frozenset[str], str] = {}
    for arm in request.arms:
        recipe, stages = recipes[arm.name], arm.stages or request.stages
        init = request.init if arm.init is None else arm.init
        try:
            for stage in stages:
                _check_inputs(recipe, stage)
            inits = {seed: _find_weights(init, seed) for seed in request.seeds}
        except UserError as error:
            raise type(error)(f"{request.label}{arm.name}: {error}") from error
        jobs: dict[int, tuple[Job, ...]] = {}
        for seed, start in inits.items():
            seeded = replace(recipe, train=replace(recipe.train, seed=seed))
            by_stage: dict[SweepStage, Job] = {}
            for stage in stages:
                needs = by_stage.get(STARTS_FROM[stage]) if stage in STARTS_FROM else None
                settings = _select_stage_settings(stage, seeded, own_root="data.root" in arm.overrides)
                identity = json.dumps([stage, needs.key if needs else start, settings], sort_keys=True)
                key = hashlib.sha256(identity.encode()).hexdigest()[:KEY_LETTERS]
                by_stage[stage] = Job(stage=stage, key=key, seed=seed, recipe=seeded, needs=needs, init=start)
            jobs[seed] = tuple(by_stage.values())
        keys = frozenset(job.name for planned in jobs.values() for job in planned)
        if (same := seen.setdefault(keys, arm.name)) != arm.name:
            raise RecipeError(
                f"{request.label}the arms '{same}' and '{arm.name}' have the same jobs: none of the stages "
                f"{', '.join(stages)} depends on their difference; leave one out"
            )
        init = init if SEED_PLACE in init else next(iter(inits.values()))
        arms.append(PlannedArm(name=arm.name, overrides=arm.overrides, stages=stages, init=init, jobs=jobs))
    return SweepPlan(request=request, arms=tuple(arms))


def resolve_arms(request: SweepRequest, *, data: str | None) -> dict[str, Recipe]:
    """The recipe of each arm by its name."""
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    no_changes = Arm(name="")  # first, so that the problems of all arms are not listed for each of them
    for arm in (no_changes, *request.arms):
        changes = [*request.overrides, *(f"{key}={text}" for key, text in arm.overrides.items())]
        root = None if "data.root" in arm.overrides else data
        try:
            if any(change.partition("=")[0].strip() == "train.seed" for change in changes):
                raise RecipeError("train.seed: a sweep sets it; give --seeds")
            recipes[arm.name] = recipe_for_run(request.recipe, data=root, overrides=changes)
            _refuse_unused_targets(recipes[arm.name].pretrain, arm)
        except RecipeError as error:
            if arm is no_changes:
                raise
            problems += [f"{request.label}{arm.name}: {line}" for line in str(error).split("\n")]
    if problems:
        raise RecipeError(one_per_line(problems))
    del recipes[no_changes.name]
    return recipes


def _find_weights(init: str, seed: int) -> str:
    """The name of the weights that a seed starts from; wrong weights are found before any run."""
    if init == FROM_SCRATCH:
        return init
    located = find_init(init.replace(SEED_PLACE, str(seed)), output=None, overwrite=False)
    check_init(located, resumed=None)
    return located.name


def _refuse_unused_targets(section: PretrainSettings, arm: Arm) -> None:
    """Refuse an arm that hides tokens, as a method that predicts them, where the objective predicts none."""
    chosen = any(key.startswith("pretrain.selection") for key in arm.overrides)
    settings = vars(section.selection)
    hides = "mask_ratio" in settings or settings.get("visible_ratio") is not None
    if chosen and hides and section.objective == "views":
        raise RecipeError(
            f"pretrain.selection: {section.selection.strategy} hides tokens, and pretrain.objective=views "
            "predicts none; compare such methods on the recipe k400, or set pretrain.objective: pixels"
        )


def _check_inputs(recipe: Recipe, stage: SweepStage) -> None:
    """Raise DataError or CheckpointError if an input of a stage is missing, before any stage runs."""
    data = recipe.data
    lists: dict[SweepStage, tuple[str, ...]] = {
        "pretrain": (pretrain_key(data),),
        "finetune": ("train",) if data.val is None else ("train", "val"),
        "eval": ("test",),
        "probe": ("train", "test"),
    }
    files = {f"data.{key}": find_source(data, key, labeled=stage != "pretrain")[0] for key in lists[stage]}
    root = parse_location(data.root)
    if stage == "pretrain":
        with_absolute_paths(recipe)  # finds its tokenizer and its teacher
    if stage in ("finetune", "probe") and data.classes is not None:
        files["data.classes"] = join_location(root, data.classes)
    for key, file in files.items():
        if not file.exists():
            raise DataError(f"{key}: {not_found_text(file)}; {stage} reads it: set data.root (--data DIR)")


def _select_stage_settings(stage: SweepStage, recipe: Recipe, *, own_root: bool) -> dict[str, Any]:
    """The settings that identify the job of a stage, without those of the stages before it.

    Args:
        own_root: whether the arm sets its own folder of videos; the common folder may be moved.
    """
    exempt = RESUME_MAY_CHANGE - {"data.root"} if own_root else RESUME_MAY_CHANGE
    ignored = _KEYS_IGNORED[stage]
    if stage == "pretrain" and recipe.data.pretrain is not None:
        ignored = (*ignored, "data.train")
    sections = tuple(f"{section}." for section in ignored)
    return {
        key: value
        for key, value in flat_values(recipe_values(recipe)).items()
        if key.startswith(_KEYS_READ[stage]) and key not in exempt and not f"{key}.".startswith(sections)
    }
