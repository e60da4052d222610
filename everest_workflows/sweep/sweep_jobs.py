"""The plan of a sweep: the recipe of each variant, and the jobs of each variant and seed.

A job is a training run or an evaluation, identified by the settings that it depends on. Variants that differ
only in later stages share the jobs of earlier ones, such as one pre-training for each seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from everest.checkpoints.frozen import with_absolute_paths
from everest.checkpoints.init import check_init, find_init
from everest.config.recipe import RESUME_MAY_CHANGE, flat_values, recipe_for_run, recipe_values
from everest.config.settings import Recipe
from everest.config.stage_settings import STAGES
from everest.data.recipe_clips import pretrain_key
from everest.errors import DataError, RecipeError, UserError, one_per_line
from everest.lists.sources import find_source
from everest.system.storage import join_location, parse_location
from everest.video.folders import not_found_text
from everest_workflows.sweep.request import (
    FROM_SCRATCH,
    REQUIRED_STAGE,
    SEED_FIELD,
    SweepRequest,
    SweepStage,
    Variant,
    as_overrides,
)

KEY_LETTERS: Final = 12  # of a SHA-256; enough to tell any number of jobs apart
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
        return f"{self.stage}/{self.key}"

    @property
    def steps(self) -> int | None:
        """The steps of a training stage whose recipe sets them."""
        return getattr(self.recipe, self.stage).steps if self.stage in STAGES else None

    def file(self, folder: Path, ending: str) -> Path:
        """A file next to the run: its recipe (yaml), messages (log), evaluation (json) or videos (csv)."""
        return folder / self.stage / f"{self.key}.{ending}"

    def command(self, folder: Path, *, gpus: str) -> list[str]:
        """The words of the job's command, after `everest`."""
        start = self.init if self.needs is None else str(folder / self.needs.name)
        options = ["--recipe", str(self.file(folder, "yaml")), "--data", self.recipe.data.root]
        if self.stage == "eval":  # with the outcome of each video, for intervals over videos
            options += ["--predictions", str(self.file(folder, "csv")), "--overwrite"]
        if self.stage not in STAGES:
            return [self.stage, "--checkpoint", start, *options, "--json", "--gpus", gpus]
        init = ["--init", start] if self.stage == "finetune" or start != FROM_SCRATCH else []
        return [self.stage, *options, *init, "--output", str(folder / self.name), "--gpus", gpus]


@dataclass(frozen=True, kw_only=True)
class PlannedVariant(Variant):
    """A variant, with the jobs of each seed in the order of the stages."""

    jobs: dict[int, tuple[Job, ...]]


@dataclass(frozen=True, kw_only=True)
class SweepJobs:
    """A sweep, with all jobs of its variants."""

    request: SweepRequest
    variants: tuple[PlannedVariant, ...]

    def jobs(self) -> dict[str, Job]:
        """All jobs by their names, once each, seed by seed: a stopped sweep can already compare variants."""
        ordered = (
            job for seed in self.request.seeds for variant in self.variants for job in variant.jobs[seed]
        )
        return {job.name: job for job in ordered}

    def variants_using(self, job: Job) -> list[str]:
        return [
            variant.name
            for variant in self.variants
            if job.name in {each.name for each in variant.jobs[job.seed]}
        ]


def plan_sweep(request: SweepRequest, *, data: str | None) -> SweepJobs:
    """Plan the jobs of a sweep on the videos and lists in the folder `data` (`data.root`); writes nothing."""
    recipes = resolve_variants(request, data=data)
    variants = []
    seen: dict[frozenset[str], str] = {}
    for variant in request.variants:
        try:
            for stage in variant.stages:
                _check_inputs(recipes[variant.name], stage)
            inits = {seed: _find_weights(variant.init, seed) for seed in request.seeds}
        except UserError as error:
            raise type(error)(f"{request.message_prefix}{variant.name}: {error}") from error
        jobs = {seed: _plan_jobs(variant, recipes[variant.name], seed, init) for seed, init in inits.items()}
        keys = frozenset(job.name for planned in jobs.values() for job in planned)
        if (same := seen.setdefault(keys, variant.name)) != variant.name:
            raise RecipeError(
                f"{request.message_prefix}the variants '{same}' and '{variant.name}' have the same jobs: "
                f"none of the stages {', '.join(variant.stages)} depends on their difference; leave one out"
            )
        init = variant.init if SEED_FIELD in variant.init else next(iter(inits.values()))
        variants.append(PlannedVariant(**vars(replace(variant, init=init)), jobs=jobs))
    return SweepJobs(request=request, variants=tuple(variants))


def _plan_jobs(variant: Variant, recipe: Recipe, seed: int, init: str) -> tuple[Job, ...]:
    """The jobs of a variant for a seed; a job's key is a hash of the settings that it depends on."""
    seeded = replace(recipe, train=replace(recipe.train, seed=seed))
    jobs: dict[SweepStage, Job] = {}
    for stage in variant.stages:
        needs = jobs.get(STARTS_FROM[stage]) if stage in STARTS_FROM else None
        settings = _select_stage_settings(stage, seeded, own_root="data.root" in variant.overrides)
        identity = json.dumps([stage, needs.key if needs else init, settings], sort_keys=True)
        key = hashlib.sha256(identity.encode()).hexdigest()[:KEY_LETTERS]
        jobs[stage] = Job(stage=stage, key=key, seed=seed, recipe=seeded, needs=needs, init=init)
    return tuple(jobs.values())


def resolve_variants(request: SweepRequest, *, data: str | None) -> dict[str, Recipe]:
    def resolve(overrides: Mapping[str, Any]) -> Recipe:
        changes = [*request.overrides, *as_overrides(overrides)]
        if any(change.partition("=")[0].strip() == "train.seed" for change in changes):
            raise RecipeError("train.seed: a sweep sets it; give --seeds")
        root = None if "data.root" in overrides else data
        return recipe_for_run(request.recipe, data=root, overrides=changes)

    resolve({})  # first, so that the problems of all variants are not listed for each of them
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for variant in request.variants:
        try:
            recipes[variant.name] = resolve(variant.overrides)
        except RecipeError as error:
            problems += [f"{request.message_prefix}{variant.name}: {line}" for line in str(error).split("\n")]
    if problems:
        raise RecipeError(one_per_line(problems))
    return recipes


def _find_weights(init: str, seed: int) -> str:
    """The name of the weights that a seed starts from; wrong weights are found before any run."""
    if init == FROM_SCRATCH:
        return init
    located = find_init(init.replace(SEED_FIELD, str(seed)), output=None, overwrite=False)
    check_init(located, resumed=None)
    return located.name


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
    """The settings that identify the job of a stage, without those of the stages before it."""
    # The common folder of videos may be moved, not that of a variant.
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
