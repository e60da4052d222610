"""Run folders: the recipe, environment, metrics and weights of a run, all that later commands need."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from everest.errors import DataError, RecipeError, shorten
from everest.system.files import PART_SUFFIX, write_errors, write_table, write_text
from everest.system.moved_folder import moved
from everest.system.text import (
    damage_errors,
    json_text,
    load_json,
    nonfinite_as_null,
    parse_json,
    validate,
)

RECIPE_FILE: Final = "recipe.yaml"
ENVIRONMENT_FILE: Final = "env.json"
METRICS_FILE: Final = "metrics.jsonl"
WEIGHTS_FILE: Final = "model.safetensors"
BEST_FILE: Final = "best.safetensors"
BAD_VIDEOS_FILE: Final = "bad_videos.csv"
BAD_COLUMNS: Final = ("path", "reason")
NONFINITE_FILE: Final = "nonfinite.json"  # the last step with a non-finite loss or gradient, and its videos
REPORT_FILE: Final = "report.json"  # quality of a tokenizer on held-out videos
REPORT_IMAGE: Final = "report.png"
STATE_FOLDER: Final = "state"
_REPORTS: Final = (REPORT_FILE, REPORT_IMAGE)
RESULT_FILES: Final = (METRICS_FILE, WEIGHTS_FILE, BEST_FILE, BAD_VIDEOS_FILE, NONFINITE_FILE, *_REPORTS)
RUN_FILES: Final = (RECIPE_FILE, *RESULT_FILES, ENVIRONMENT_FILE)  # replaced by a new run
TOKENIZER_FOLDER: Final = "tokenizer"  # in a run of LVMAE: the folder of the tokenizer stage
PACKAGES: Final = ("everest-video", "torch", "torchvision", "timm", "accelerate", "av")  # recorded packages
RESTORE_FIX: Final = "restore the file, or start over with --overwrite"

Row = dict[str, Any]  # a row of metrics.jsonl
DecoderStart = Literal["keep", "fresh"]  # the option --decoder
Which = Literal["newest", "best"]  # the option --which: weights of a run folder


@dataclass(frozen=True, kw_only=True)
class InitFile:
    """The weights that the option --init names.

    Args:
        name: the name that the user wrote, with its path made absolute.
        file: the weights file.
        decoder: the option --decoder; None: keep the decoder if it fits.
    """

    name: str
    file: str
    decoder: DecoderStart | None = None


@dataclass(frozen=True, kw_only=True)
class SavedPlan:
    """The values of a run's plan that later commands read from env.json."""

    videos: int
    samples: str  # fingerprint of the samples
    processes: int
    micro_batch: int  # clips per micro-batch of one process
    batch_size: int  # clips per step
    steps: int
    finished: int | None = None  # the last step of a finished run


@dataclass(frozen=True, kw_only=True)
class RunEnvironment:
    """The values of env.json that later commands read; its other values describe the machine."""

    stage: str  # pretrain, finetune or train-tokenizer
    plan: SavedPlan
    one_batch: bool = False  # the run overfits its first batch
    init: str | None = None  # the weights that the run starts from
    init_name: str | None = None  # the option --init, as an absolute path
    decoder: DecoderStart | None = None  # the option --decoder
    origin: dict[str, Any] | None = None  # describes the initial weights and their own origin
    tracker: dict[str, str] | None = None  # the `name` of the last tracker, and the `id` of its run


_ENVIRONMENT: Final = TypeAdapter(RunEnvironment)


def tokenizer_file(run: Path) -> Path:
    """The file of the tokenizer that an LVMAE run trains as its first stage."""
    return run / TOKENIZER_FOLDER / WEIGHTS_FILE


def is_tokenizer_file(file: str) -> bool:
    """Whether a path has the form of `tokenizer_file`, in any run."""
    return Path(file).parts[-2:] == (TOKENIZER_FOLDER, WEIGHTS_FILE)


class RunFolder:
    """The files of one run under `path` (see the constants of this module)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / WEIGHTS_FILE
        self.best = path / BEST_FILE
        self.report = path / REPORT_FILE
        self.state = path / STATE_FOLDER

    def is_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / RECIPE_FILE).is_file() and (self.path / ENVIRONMENT_FILE).is_file()

    def start(self, recipe_text: str, values: Mapping[str, Any]) -> None:
        """Clear the folder, write env.json with these values, then the recipe, which makes the folder a run.

        env.json also holds versions, devices, commit and command line: everything needed to repeat a run.
        """
        import torch  # imported here, because listing runs needs no torch

        self.clear()
        versions = dict.fromkeys(PACKAGES, "not installed")
        for package in PACKAGES:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        commit = None
        checkout = Path(__file__).parents[2]
        if (checkout / ".git").exists():  # else the package was installed or copied
            git: Any = {"args": ["git", "-C", str(checkout), "rev-parse", "HEAD"], "timeout": 10}
            with suppress(OSError, subprocess.SubprocessError):
                commit = subprocess.check_output(**git, stderr=subprocess.DEVNULL, text=True).strip()
        machine = {
            "command": sys.argv,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions,
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
            "git_commit": commit,
        }
        write_text(self.path / ENVIRONMENT_FILE, json_text({**machine, **values}, indent=2))
        write_text(self.path / RECIPE_FILE, recipe_text)

    def clear(self) -> None:
        """Remove the files of an earlier run; any other file in the folder stays.

        The recipe is removed first, and the environment stays. So after a kill at any moment the folder is
        not a run, but its files are still recognized as files of a run.
        """
        for name in RUN_FILES[:-1]:
            (self.path / name).unlink(missing_ok=True)
        for state in self.state.glob("step-*"):
            state.unlink()

    def remove_unfinished(self) -> None:
        """Remove files that killed processes have left unfinished."""
        own_files = [self.path / f".{name}{PART_SUFFIX}" for name in RUN_FILES]
        for file in (*own_files, *self.state.glob(f".step-*.safetensors{PART_SUFFIX}")):
            file.unlink(missing_ok=True)

    def read_environment(self) -> RunEnvironment:
        """The values of env.json; RecipeError if the file is missing or damaged."""
        with damage_errors(self.path / ENVIRONMENT_FILE, fix=RESTORE_FIX):
            return validate(_ENVIRONMENT, moved(self._read_values(), self.path))

    def _read_values(self) -> dict[str, Any]:
        return load_json(self.path / ENVIRONMENT_FILE, fix=RESTORE_FIX)

    def has_environment(self) -> bool:
        """Whether everest wrote an env.json here; its values may be damaged."""
        with suppress(RecipeError):
            return "plan" in self._read_values()
        return False

    def finish(self, step: int) -> None:
        """Record that the run is finished after `step` updates."""
        self.save_value("plan", {**self._read_values()["plan"], "finished": step})

    def save_value(self, key: str, value: Any) -> None:
        """Add a value to env.json, or replace it."""
        write_text(self.path / ENVIRONMENT_FILE, json_text({**self._read_values(), key: value}, indent=2))

    def log_row(self, row: Row) -> None:
        """Append a row to metrics.jsonl; a number that is not finite is written as null."""
        path = self.path / METRICS_FILE
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json_text(nonfinite_as_null(row)) + "\n")

    def read_metrics(self) -> tuple[list[Row], list[str]]:
        """Return the rows of metrics.jsonl, and a message for each line that is not a row.

        An incomplete last line, which a run may be writing, is ignored.
        """
        path = self.path / METRICS_FILE
        if path.exists() and not path.is_file():
            return [], [f"{path}: damaged (not a regular file)"]
        rows: list[Row] = []
        problems: list[str] = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else (), start=1):
            try:
                row = parse_json(line)
                rows.append({**row, "step": int(row["step"])})
            except (ValueError, LookupError, TypeError) as error:
                problems.append(f"{path}:{number}: not a row of metrics ({shorten(error)})")
        return rows, problems

    def rows(self) -> list[Row]:
        """Return the complete rows of metrics.jsonl; lines damaged by a kill or a power cut are skipped."""
        return self.read_metrics()[0]

    def rewind(self, step: int) -> None:
        """Drop the rows logged after `step` updates: a resumed run logs them again."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_text(self.path / METRICS_FILE, "".join(json_text(row) + "\n" for row in rows))

    def write_bad_videos(self, reasons: dict[str, str]) -> None:
        """Write bad_videos.csv: `path,reason`, one row per video."""
        write_table(self.path / BAD_VIDEOS_FILE, [BAD_COLUMNS, *sorted(reasons.items())])

    def read_bad_videos(self) -> dict[str, str]:
        """Return the reason for each path in bad_videos.csv; empty if every video could be read."""
        path = self.path / BAD_VIDEOS_FILE
        if not path.is_file():
            return {}
        with (
            damage_errors(path, fix="remove it", error=DataError),
            path.open(newline="", encoding="utf-8") as file,
        ):
            header, *rows = csv.reader(file, strict=True)
            if header != [*BAD_COLUMNS]:
                raise ValueError(f"its columns are {', '.join(header)}")
            return dict(rows)
