"""A run's folder: what it was asked, what it did, what it learned. Every later command needs nothing else."""

from __future__ import annotations

import csv
import importlib.metadata
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everest.system.files import write_error, write_table, write_text

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
REPORT, REPORT_IMAGE = "report.json", "report.png"  # of a tokenizer: what it is worth on held-out videos
OWN_FILES = (  # replaced by a new run
    *(RECIPE, ENVIRONMENT, METRICS, WEIGHTS, BEST, BAD_VIDEOS, NONFINITE),
    *(REPORT, REPORT_IMAGE),
)
TOKENIZER = "tokenizer"  # the folder of the stage before, in a run of LVMAE
INIT = "init"  # in ENVIRONMENT: the weights that a run started from
PLAN = "plan"  # in ENVIRONMENT: how the run is cut into steps and passes, and its videos
ONE_BATCH = "one_batch"  # in ENVIRONMENT: whether the first batch is learned by heart


def own_tokenizer(run: Path) -> Path:
    """Where a run of LVMAE has the tokenizer that it trains itself."""
    return run / TOKENIZER / WEIGHTS


def is_own_tokenizer(file: str) -> bool:
    """Whether a file is the own tokenizer of some run."""
    return Path(file).parts[-2:] == (TOKENIZER, WEIGHTS)


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
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def picture(self) -> Path:
        return self.path / REPORT_IMAGE

    @property
    def state(self) -> Path:
        return self.path / STATE

    def start(
        self, recipe_text: str, *, init: str | None, plan: dict[str, Any], one_batch: bool = False
    ) -> None:
        """Write the recipe and the environment: from here on this is a run folder.

        What an earlier run left is removed, and nothing else that may lie in the folder.
        """
        for name in OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for state in self.state.glob("step-*"):
            state.unlink()
        told = {**environment(), INIT: init, PLAN: plan, ONE_BATCH: one_batch}
        write_text(self.path / ENVIRONMENT, json.dumps(told, indent=2))
        write_text(self.path / RECIPE, recipe_text)

    def read_env(self, key: str) -> Any:
        """A value of env.json; None where there is none, or no file of a run."""
        path = self.path / ENVIRONMENT
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return told.get(key) if isinstance(told, dict) else None

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
        write_table(self.path / BAD_VIDEOS, [("path", "reason"), *sorted(reasons.items())])

    def write_nonfinite(self, *, step: int, figures: Mapping[str, float], videos: list[str]) -> None:
        """nonfinite.json: the last step with a loss or a gradient that was not finite, and its videos."""
        as_text = {name: str(value) for name, value in figures.items()}
        told = {"step": step, **as_text, "videos": sorted(videos)}
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
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def default_folder(command: str, recipe: str) -> Path:
    """runs/<command>/<recipe>-<time>, for a run without --output; numbered if there is one of this second."""
    folder = Path("runs") / command / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


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
    package = Path(__file__).resolve().parents[1]
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        asked = subprocess.run(command, cwd=package, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    top, commit = asked.stdout.split("\n")[:2]
    return commit if Path(top) == package.parent else None  # else that of a project around a wheel
