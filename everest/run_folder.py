"""A run's folder: what it was asked, what it did, what it learned. Every later command needs nothing else."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everest.errors import RecipeError
from everest.files import write_atomically, write_error, write_text
from everest.running import RUNNING, running_here

RECIPE, ENVIRONMENT, METRICS, WEIGHTS, BEST, BAD_VIDEOS, STATE = (
    "recipe.yaml",
    "env.json",
    "metrics.jsonl",
    "model.safetensors",
    "best.safetensors",
    "bad_videos.csv",
    "state",
)
NONFINITE = "nonfinite.json"
INIT = "init"  # in ENVIRONMENT: the weights that a run started from
PLAN = "plan"  # in ENVIRONMENT: how the run is cut into steps and passes


@dataclass(frozen=True)
class RunFolder:
    """The files of one run under `path` (see the constants of this module)."""

    path: Path

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def best(self) -> Path:
        return self.path / BEST

    @property
    def state(self) -> Path:
        return self.path / STATE

    def start(self, recipe_text: str, *, init: str | None, plan: dict[str, Any]) -> None:
        """Write the recipe and the environment: from here on this is a run folder.

        What an earlier run left is removed, and nothing else that may lie in the folder.
        """
        for name in (RECIPE, ENVIRONMENT, METRICS, WEIGHTS, BEST, BAD_VIDEOS, RUNNING, NONFINITE):
            (self.path / name).unlink(missing_ok=True)
        for state in self.state.glob("*.safetensors"):
            state.unlink()
        told = {**environment(), INIT: init, PLAN: plan}
        write_text(self.path / ENVIRONMENT, json.dumps(told, indent=2))
        write_text(self.path / RECIPE, recipe_text)

    def told(self, key: str) -> Any:
        """A value of env.json; None where there is none."""
        path = self.path / ENVIRONMENT
        return json.loads(path.read_text()).get(key) if path.is_file() else None

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        try:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise write_error(self.path / METRICS, error) from error

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows of metrics.jsonl; what a kill or a power cut left of others is left out."""
        path = self.path / METRICS
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        return [row for row in map(_row, lines) if row is not None]

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step` updates: a resumed run logs it again."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def write_bad_videos(self, reasons: dict[str, str]) -> None:
        """bad_videos.csv: `path,reason`, one row a video."""

        def write(part: Path) -> None:
            with part.open("w", newline="", errors="surrogateescape") as file:
                csv.writer(file).writerows([("path", "reason"), *sorted(reasons.items())])

        write_atomically(self.path / BAD_VIDEOS, write)

    def write_nonfinite(self, *, step: int, loss: float, norm: float, videos: list[str]) -> None:
        """nonfinite.json: the last step whose loss or gradient was not finite, and its videos."""
        told = {"step": step, "loss": str(loss), "grad_norm": str(norm), "videos": sorted(videos)}
        write_text(self.path / NONFINITE, json.dumps(told, indent=2))

    def bad_videos(self) -> dict[str, str]:
        """What `write_bad_videos` wrote, empty when nothing was bad."""
        path = self.path / BAD_VIDEOS
        if not path.is_file():
            return {}
        with path.open(newline="", errors="surrogateescape") as file:
            return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def default_folder(command: str, recipe: str) -> Path:
    """runs/<command>/<recipe>-<time>, for a run without --output."""
    return Path("runs") / command / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_output(path: Path, recipe_text: str, *, init: str | None, resume: bool, overwrite: bool) -> bool:
    """Whether a run into `path` continues the one that is there. Nothing is written or removed.

    Raises:
        RecipeError: a process trains the run, or something else is at `path` and `overwrite` is not given.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not path.is_dir():
        raise RecipeError(f"--output {path}: a file is in the way; choose another folder")
    process = running_here(path)
    if process not in (None, os.getpid()):
        raise RecipeError(f"--output {path}: process {process} trains it now; wait for it, or stop it first")
    if overwrite:
        return False
    there = path / RECIPE
    if not there.is_file():
        raise RecipeError(f"--output {path}: exists and is no run folder; choose another, or use --overwrite")
    if not resume:
        raise RecipeError(
            f"--output {path}: holds a run; leave out --resume never to continue it, or use --overwrite"
        )
    if there.read_text() != recipe_text:
        raise RecipeError(
            f"--output {path}: holds a run of another recipe (compare {there}); "
            "choose another folder, or use --overwrite"
        )
    before = RunFolder(path).told(INIT)
    if before != init:
        raise RecipeError(
            f"--output {path}: holds a run that started from {before or 'scratch'}, not from "
            f"{init or 'scratch'}; choose another folder, or use --overwrite"
        )
    return True


def environment() -> dict[str, Any]:
    """Versions, device, commit and command line: what a reader of the run needs to repeat it."""
    import torch  # here, so that listing runs needs none

    return {
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": dict(_versions(("everest-video", "torch", "torchvision", "timm", "accelerate", "av"))),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "git_commit": _git_commit(),
    }


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def _git_commit() -> str | None:
    """The commit of the checkout that the package runs from; None from a wheel or without git."""
    here = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
