"""Find run folders and summarize them: state, progress, loss, accuracy. Needs no torch."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from everest.config.heads import BACKGROUND, BACKGROUND_METRIC
from everest.config.recipe_files import find_recipe
from everest.errors import RecipeError, UserError
from everest.metrics.names import METRICS
from everest.system.locks import is_running
from everest.system.run_folder import (
    ENVIRONMENT_FILE,
    RECIPE_FILE,
    RESTORE_FIX,
    STATE_FOLDER,
    RunEnvironment,
    RunFolder,
)
from everest.system.text import damage_errors
from everest.system.weights_header import read_header

State = Literal["running", "finished", "resumable", "started", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a line. Values that are not known (yet) are None.

    running: a process trains it. finished: nothing is left to do. resumable: stopped, with a state to resume
    from. started: stopped before anything was saved. damaged: see `problem`.
    """

    path: str
    state: State
    age_seconds: int  # since the run last wrote
    command: str | None = None
    recipe: str | None = None
    step: int | None = None  # the last one logged
    steps: int | None = None  # steps in all
    loss: float | None = None  # the loss of the last step
    best_metric: str | None = None  # the metric that chooses the best weights (everest.metrics.names.METRICS)
    best_value: float | None = None  # its best value, in percent or in the unit of the labels
    problem: str | None = None


def find_runs(folder: Path) -> list[Path]:
    """The run folders at and below `folder`, in the order of their paths."""
    if not folder.is_dir():
        raise RecipeError(f"no folder '{folder}'; name the one that holds your runs")
    runs = []
    for here, folders, files in os.walk(folder):
        is_run = {RECIPE_FILE, ENVIRONMENT_FILE} <= {*folders, *files}  # of any kind, perhaps damaged
        if is_run:
            runs.append(Path(here))
        folders[:] = [n for n in folders if not n.startswith(".") and not (is_run and n == STATE_FOLDER)]
    return sorted(runs)


def summarize(run: Path) -> RunSummary:
    """Summarize a run from its files. A damaged file raises no error: one run must not hide the others."""
    age = 0
    try:
        with damage_errors(run, fix=RESTORE_FIX):
            newest = 0.0  # time of the last write
            for file in run.iterdir():
                with suppress(FileNotFoundError):  # a temporary file that is gone already, or a dangling link
                    newest = max(newest, file.stat().st_mtime)
            age = int(max(0.0, time.time() - newest))
            environment, rows = read_run(run)
            loss = _newest(rows, "loss")
            metric = metric_of_run(run, rows)
            name = find_recipe(run / RECIPE_FILE).values().get("name")
            values = [float(row[f"val_{metric}"]) for row in rows if f"val_{metric}" in row]
            best = max if metric is not None and METRICS[metric].is_higher_better else min
            last, weights = _newest(rows, "step"), RunFolder(run).weights
            state: State = "resumable" if any((run / STATE_FOLDER).glob("step-*.safetensors")) else "started"
            if is_running(run):
                state = "running"
            elif last is not None and environment.plan.finished == last:
                state = "finished" if weights.is_file() and read_header(weights).step == last else state
            return RunSummary(
                path=str(run),
                state=state,
                age_seconds=age,
                command=environment.stage,
                recipe=None if name is None else str(name),
                step=last,
                steps=environment.plan.steps,
                loss=None if loss is None else float(loss),
                best_metric=metric,
                best_value=best(values, default=None),
            )
    except UserError as error:
        return RunSummary(path=str(run), state="damaged", age_seconds=age, problem=str(error))


def metric_of_run(run: Path, rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The metric that chooses the best weights of a run, from its rows of metrics.jsonl; None without any."""
    candidates = [find_recipe(run / RECIPE_FILE).values().get("finetune", {}).get("best")]
    if candidates == [None]:
        weights = RunFolder(run).weights
        names = read_header(weights).classes if weights.is_file() else None
        candidates = [BACKGROUND_METRIC] if BACKGROUND in (names or ()) else ["top1", "map", "mae", "loss"]
    logged = {name for row in rows for name in row}
    return next((name for name in candidates if f"val_{name}" in logged), None)


def hours_of_steps(rows: Iterable[Mapping[str, Any]], batch_size: int) -> list[float]:
    """The hours in steps up to each row of a step, over all resumes, without validation and saving."""
    # 0.005: metrics.jsonl rounds lower speeds to 0.00.
    seconds = itertools.accumulate(batch_size / max(row["clips_per_second"], 0.005) for row in rows)
    return [total / 3600 for total in seconds]


def _newest(rows: list[dict[str, Any]], key: str) -> Any:
    return next((row[key] for row in reversed(rows) if key in row), None)


def read_run(path: Path) -> tuple[RunEnvironment, list[dict[str, Any]]]:
    """The values of a run's env.json and the rows of its metrics.jsonl."""
    run = RunFolder(path)
    if not run.is_run():
        raise RecipeError(f"{path}: not a run folder ({RECIPE_FILE} or {ENVIRONMENT_FILE} is missing)")
    environment = run.read_environment()
    rows, problems = run.read_metrics()
    if problems:
        raise RecipeError(problems[0])
    return environment, rows
