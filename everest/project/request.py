"""What `everest train` was asked for, and the folder that keeps it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from everest.config.heads import Task
from everest.errors import DataError, RecipeError, differing
from everest.system.files import FIX, MARKER, check_new_folder, refuse_inputs, write_text
from everest.system.json_text import json_text, read_json
from everest.system.locks import refuse_trained

PROJECT, RECIPE, RESULT = "project.json", "recipe.yaml", "result.json"
LISTS, PRETRAIN, FINETUNE, REPORT, FOLDS = "lists", "pretrain", "finetune", "report", "folds"
OWN: Final = (PROJECT, RECIPE, RESULT, LISTS, PRETRAIN, FINETUNE, REPORT, FOLDS)
FEWEST_FOLDS: Final = 3  # each fold is once the test list, and once the validation list


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; paths are absolute."""

    videos: str
    annotations: str | None = None
    unlabeled: str | None = None
    group: str | None = None
    task: Task | None = None
    folds: int | None = None
    hours: float | None = None
    overrides: Sequence[str] = ()

    @property
    def inputs(self) -> dict[str, Path]:
        """The files and folders that are read, by their option."""
        named = {"": self.videos, "--annotations ": self.annotations, "--unlabeled ": self.unlabeled}
        return {option: Path(path) for option, path in named.items() if path is not None}

    def check(self, folder: Path | None) -> None:
        """Raise UserError for what cannot be; `folder` must not contain an input, nor be inside of one."""
        for option, path in self.inputs.items():
            if not path.exists():
                raise DataError(f"{option}{path}: no such file or folder")
            if folder is not None and path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise RecipeError(f"--output {folder}: is inside of {path}, which is read; name another")
        if folder is not None:
            refuse_inputs(folder, self.inputs.values(), option="--output")
        if self.annotations is not None and not Path(self.videos).is_dir():
            raise RecipeError(f"{self.videos}: no folder; --annotations needs that of the recordings")
        if self.folds is not None and self.folds < FEWEST_FOLDS:
            raise RecipeError(f"--folds {self.folds}: needs at least {FEWEST_FOLDS}")
        if self.hours is not None and not 0 < self.hours < float("inf"):
            raise RecipeError(f"--hours {self.hours}: must be a number above 0")

    def values(self) -> dict[str, Any]:
        """The request as project.json has it."""
        return asdict(self) | {"overrides": list(self.overrides)}


def find_project(folder: Path, request: Request, *, overwrite: bool) -> dict[str, Any] | None:
    """The document of the project of this request in a folder; None: it can be started there.

    Args:
        overwrite: another project may be there, which will be replaced; other files may not.
    """
    path = folder / PROJECT
    if not path.exists():
        check_new_folder(folder, PROJECT, option="--output", overwrite=False, is_own=lambda name: name in OWN)
        return None
    if overwrite:
        for recipe in folder.rglob(RECIPE):
            refuse_trained(recipe.parent)
        return None
    try:
        document = read_json(path)
        differences = differing(document["request"], request.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path}: damaged ({error}); {FIX}") from error
    if differences:
        raise RecipeError(f"--output {folder}: holds another project: {'; '.join(differences)}; {FIX}")
    return document


def clear(folder: Path, *, marked: bool) -> None:
    """Remove the files of a project; `marked`: the mark of an unfinished folder stays."""
    for name in OWN if marked else (*OWN, MARKER):
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write project.json or result.json."""
    write_text(path, json_text(document, indent=2) + "\n")
