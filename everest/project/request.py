"""What `everest train` was asked for, and the folder that keeps it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from everest.config.heads import Task
from everest.errors import DataError, RecipeError, differing
from everest.system.files import FIX, check_new_folder, refuse_inputs, write_text
from everest.system.json_text import json_text, read_json
from everest.system.locks import refuse_trained

PROJECT: Final = "project.json"
RECIPE: Final = "recipe.yaml"
RESULT: Final = "result.json"
LISTS: Final = "lists"
PRETRAIN, FINETUNE, REPORT, FOLDS = "pretrain", "finetune", "report", "folds"
OWN: Final = (PROJECT, RECIPE, RESULT, LISTS, PRETRAIN, FINETUNE, REPORT, FOLDS)
FEWEST_FOLDS: Final = 3  # each fold is once the test list, and once the validation list of the others


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; paths are absolute. The same request gives the same project."""

    videos: str
    annotations: str | None = None
    unlabeled: str | None = None
    group: str | None = None
    task: Task | None = None
    folds: int | None = None
    hours: float | None = None
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, path in self._paths():
            if not Path(path).exists():
                raise DataError(f"{name}{path}: no such file or folder")
        if self.annotations is not None and not Path(self.videos).is_dir():
            raise RecipeError(
                f"{self.videos}: not a folder; --annotations needs the folder of the recordings"
            )
        if self.folds is not None and self.folds < FEWEST_FOLDS:
            raise RecipeError(f"--folds {self.folds}: needs at least {FEWEST_FOLDS}")
        if self.hours is not None and not 0 < self.hours < float("inf"):
            raise RecipeError(f"--hours {self.hours}: must be a number above 0")

    def _paths(self) -> list[tuple[str, str]]:
        named = (("", self.videos), ("--annotations ", self.annotations), ("--unlabeled ", self.unlabeled))
        return [(name, path) for name, path in named if path is not None]

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that contains what is read, or is inside of it."""
        refuse_inputs(folder, [Path(path) for _, path in self._paths()], option="--output")
        for _, path in self._paths():
            if Path(path).is_dir() and folder.resolve().is_relative_to(Path(path).resolve()):
                raise RecipeError(
                    f"--output {folder}: is inside of {path}, whose videos are read; name another"
                )

    def values(self) -> dict[str, Any]:
        """The request as project.json has it."""
        return asdict(self) | {"overrides": list(self.overrides)}


def open_project(folder: Path, request: Request, *, overwrite: bool) -> dict[str, Any] | None:
    """The document of the project in a folder, if it has one of this request; else the folder is made ready.

    Args:
        overwrite: remove the project that is there.
    """
    request.check_folder(folder)
    path = folder / PROJECT
    if not path.exists():
        # Another folder is refused even with --overwrite: nothing shows that its files may be removed.
        check_new_folder(folder, PROJECT, option="--output", overwrite=False, is_own=lambda name: name in OWN)
    elif overwrite:
        for run in folder.rglob(RECIPE):
            refuse_trained(run.parent)
    else:
        document = _read_project(path)
        differences = differing(document["request"], request.values())
        if differences:
            raise RecipeError(f"--output {folder}: holds another project: {'; '.join(differences)}; {FIX}")
        return document
    for name in OWN if folder.is_dir() else ():
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    return None


def _read_project(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
        if not isinstance(document["request"], dict):
            raise ValueError("no request")
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: damaged ({error}); {FIX}") from error
    return document


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write project.json or result.json."""
    write_text(path, json_text(document, indent=2) + "\n")
