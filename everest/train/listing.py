"""What run folders tell: which there are, how far each got, what it learned. Reading that needs no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from everest.config.recipe_files import find_recipe
from everest.errors import CheckpointError, RecipeError, UserError
from everest.system.run_folder import ENVIRONMENT, METRICS, RECIPE, STATE, WEIGHTS
from everest.system.run_lock import is_running, last_written

State = Literal["running", "finished", "resumable", "started", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a line. None stands for what is not known (yet).

    running: a process trains it. finished: the last step is logged and its weights are saved. resumable:
    stopped, with a state to go on from. started: stopped before anything was saved. damaged: see `problem`.
    """

    path: str
    state: State
    age_seconds: int  # since the run last wrote
    command: str | None = None
    recipe: str | None = None
    step: int | None = None  # the last one logged
    steps: int | None = None  # in all
    loss: float | None = None  # of the last step
    best_val_top1: float | None = None  # percent, on data.val
    problem: str | None = None


def find_runs(folder: Path) -> list[Path]:
    """The run folders at and below `folder`, in the order of their paths.

    Raises:
        RecipeError: there is no such folder.
    """
    if not folder.is_dir():
        raise RecipeError(f"no folder '{folder}'; name the one that holds your runs")
    found = []
    for here, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if name != STATE and not name.startswith(".")]
        if is_run(Path(here)):
            found.append(Path(here))
    return sorted(found)


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file() and (path / ENVIRONMENT).is_file()


def summarize(run: Path) -> RunSummary:
    """What the files of a run tell. A damaged file is no error: one run must not hide the others."""
    age = int(max(0.0, time.time() - last_written(run)))
    try:
        environment = read_environment(run)
        steps = environment.get("plan", {}).get("steps")
        rows = list(read_rows(run))
        return RunSummary(
            path=str(run),
            state=_state(run, rows, steps),
            age_seconds=age,
            command=_command(environment),
            recipe=find_recipe(run / RECIPE).values().get("name"),
            step=_newest(rows, "step"),
            steps=steps,
            loss=_newest(rows, "loss"),
            best_val_top1=max((float(row["val_top1"]) for row in rows if "val_top1" in row), default=None),
        )
    except UserError as error:
        return RunSummary(path=str(run), state="damaged", age_seconds=age, problem=str(error))
    except (TypeError, ValueError, AttributeError) as error:  # JSON, but with values that no run writes
        problem = f"{run}: values that no run writes ({error})"
        return RunSummary(path=str(run), state="damaged", age_seconds=age, problem=problem)


def _state(run: Path, rows: list[dict[str, Any]], steps: int | None) -> State:
    if is_running(run):
        return "running"
    # Logged is not yet saved: a run killed while it validates after the last step has to repeat some.
    if steps is not None and _newest(rows, "step") == steps and _saved_step(run) == steps:
        return "finished"
    return "resumable" if any((run / STATE).glob("step-*.safetensors")) else "started"


def _newest(rows: list[dict[str, Any]], key: str) -> Any:
    return next((row[key] for row in reversed(rows) if key in row), None)


def _saved_step(run: Path) -> int | None:
    weights = run / WEIGHTS
    return int(read_header(weights)["step"]) if weights.is_file() else None


def _command(environment: dict[str, Any]) -> str | None:
    """`pretrain` of `everest --debug pretrain --recipe …`: the first argument that is no option."""
    return next((word for word in environment["command"][1:] if not word.startswith("-")), None)


def read_environment(run: Path) -> dict[str, Any]:
    """env.json.

    Raises:
        RecipeError: `run` is no run folder, or the file is damaged.
    """
    if not is_run(run):
        raise RecipeError(f"{run}: no run folder (it would have {RECIPE} and {ENVIRONMENT})")
    path = run / ENVIRONMENT
    try:
        environment = json.loads(path.read_text())
        environment["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: damaged ({error})") from error
    return environment


def read_rows(run: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of metrics.jsonl, none if there is no such file; a last line may still be written.

    Raises:
        RecipeError: a line that is no row, with its number.
    """
    path = run / METRICS
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int) or not isinstance(row.get("loss"), float | int | None):
                raise TypeError("step or loss is no number")
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{path}:{number}: no row of metrics ({error})") from error
        yield row


def read_header(weights: Path) -> dict[str, str]:
    """What a safetensors file says of itself, without reading a tensor.

    Raises:
        CheckpointError: not a whole safetensors file, or not one of ours.
    """
    try:
        with safe_open(weights, framework="numpy") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: not a whole safetensors file ({error})") from error
    if header.get("format") != "everest":
        raise CheckpointError(f"{weights}: a safetensors file, but not written by everest")
    return header
