"""The commands of a sweep's jobs, with their devices, recipes and errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from everest.config.recipe import dump_recipe, load_recipe
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.sweep.request import NO_INIT
from everest.sweep.works import RUNS, Work
from everest.system.cores import JOBS, num_cores
from everest.system.files import write_text
from everest.system.launch import Devices, visible_gpus

THREADS: Final = "OMP_NUM_THREADS"
LAST_LINES: Final = 200  # of a log, in which the error of a job is searched
NO_LINE: Final = "no message"


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How the jobs of a sweep are started."""

    program: Sequence[str]  # the words that start `everest`
    devices: Devices
    jobs: int = 1  # at once

    @property
    def gpus(self) -> str:
        """The option --gpus of each job."""
        if self.devices.kind != "cuda":
            return self.devices.kind
        return "auto" if self.jobs == 1 else "1"

    @property
    def environments(self) -> list[dict[str, str]]:
        """The variables of each job at once: how many there are, and its GPU, round robin, or its threads."""
        ids = self.devices.ids or tuple(range(self.devices.processes))
        if self.jobs == 1:
            return [visible_gpus(ids) if self.devices.kind == "cuda" else {}]
        shared = {JOBS: str(self.jobs)}
        if self.devices.kind == "cuda":
            return [shared | visible_gpus((ids[slot % len(ids)],)) for slot in range(self.jobs)]
        if THREADS not in os.environ:
            shared[THREADS] = str(max(1, num_cores() // self.jobs))
        return [shared] * self.jobs


def command_of(work: Work, folder: Path, *, gpus: str) -> list[str]:
    """The command of a work, without the program."""
    start = work.init if work.needs is None else str(work.needs.run(folder))
    recipe = str(work.file(folder, "yaml"))
    shared = ["--recipe", recipe, "--data", work.recipe.data.root]
    if work.stage == "probe":
        return ["probe", "--checkpoint", start, *shared, "--json", *(["--cpu"] if gpus == "cpu" else [])]
    if work.stage == "eval":
        return ["eval", "--checkpoint", start, *shared, "--json", "--gpus", gpus]
    init = ["--init", start] if work.stage == "finetune" or start != NO_INIT else []
    return [work.stage, *shared, *init, "--output", str(work.run(folder)), "--gpus", gpus]


def write_recipe(work: Work, folder: Path) -> None:
    """Write the recipe of a work. A run keeps its settings of other stages, which a resume compares."""
    path, recipe = work.file(folder, "yaml"), work.recipe
    if work.stage in RUNS and path.is_file():
        recipe = _as_started(path, recipe)
    write_text(path, dump_recipe(recipe))


def _as_started(path: Path, recipe: Recipe) -> Recipe:
    """The recipe that a run was started with, with the folder of videos and the section train of `recipe`."""
    try:
        before = load_recipe(path, imports=False)
    except RecipeError:  # damaged: the run itself has a copy, and refuses another
        return recipe
    return replace(before, data=replace(before.data, root=recipe.data.root), train=recipe.train)


def last_error(log: Path, start: int) -> str:
    """The error in the messages of a failed command, in one line; those before byte `start` are older."""
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return NO_LINE
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [NO_LINE])[-1]
