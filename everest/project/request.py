"""What `everest train` was asked for, and the folder that keeps it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from everest.config.heads import Task
from everest.config.recipe import check_overrides
from everest.config.recipe_files import RecipeFile
from everest.errors import DataError, RecipeError, UserError, differing
from everest.lists.sources import LIST_FILES
from everest.system.files import IN_USE_FIX, check_new_folder, refuse_inputs, write_text
from everest.system.locks import refuse_trained
from everest.system.run_folder import ENVIRONMENT, FINETUNE, FOLDS, PROJECT, RECIPE, RunFolder
from everest.system.text import json_text, read_own_json, reading_own

RESULT = "result.json"
LISTS, PRETRAIN, REPORT = "lists", "pretrain", "report"
WINDOWS = "windows.csv"
LIST_NAMES: Final = (*LIST_FILES.values(), WINDOWS, "classes.txt", "windows_classes.txt")
PLANNED: Final = "section"  # in project.json once the lists and the recipe are written
TESTED: Final = "tested"  # in project.json: the test recordings of this project, or of the one it replaces
FILES: Final = "files"  # in project.json: see `Request.checksums`
BUDGETS: Final = tuple(f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("steps", "epochs"))
# The choices of every suggested recipe on which it depends whether a key has an effect.
SUGGESTED: Final = "{base: custom, pretrain: {objective: views, steps: 1}, finetune: {steps: 1}}"
FEWEST_FOLDS: Final = 3  # each fold is once the test list, and once the validation list


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; paths are absolute."""

    videos: str
    annotations: list[str] = field(default_factory=list)
    unlabeled: str | None = None
    group: str | None = None
    task: Task | None = None
    folds: int | None = None
    hours: float | None = None
    overrides: list[str] = field(default_factory=list)

    def check(self, folder: Path) -> None:
        """Raise UserError for what cannot be; `folder` must not contain an input, nor be inside of one."""
        named = [("", self.videos), *(("--annotations ", file) for file in self.annotations)]
        named += [("--unlabeled ", self.unlabeled)] if self.unlabeled is not None else []
        inputs = [(option, Path(path)) for option, path in named]
        for option, path in inputs:
            if not path.exists():
                raise DataError(f"{option}{path}: no such file or folder")
            if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise RecipeError(f"--output {folder}: is inside of the input {path}; name another folder")
        refuse_inputs(folder, [path for _, path in inputs])
        if self.annotations and not Path(self.videos).is_dir():
            raise RecipeError(f"{self.videos}: not a folder; --annotations needs one of recordings")
        if self.folds is not None and self.folds < FEWEST_FOLDS:
            raise RecipeError(f"--folds {self.folds}: needs at least {FEWEST_FOLDS}")
        if self.hours is not None and not 0 < self.hours < float("inf"):
            raise RecipeError(f"--hours {self.hours}: must be a number above 0")
        budget = next((text for text in self.overrides if text.startswith(BUDGETS)), None)
        if self.hours is not None and budget is not None:
            raise RecipeError(f"--hours and --set {budget} both set the number of steps; use one of them")
        recipe = RecipeFile(name="suggested", label=RECIPE, text=SUGGESTED, folder=None)
        check_overrides(recipe, self.overrides)  # before the videos are read

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files with the labels, by their paths."""
        paths = [Path(path) for path in (self.videos, *self.annotations)]
        checksums = {}
        for path in filter(Path.is_file, paths):
            with path.open("rb") as file:  # a video may be larger than the memory
                checksums[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        return checksums


def find_project(folder: Path, request: Request, *, overwrite: bool) -> dict[str, Any] | None:
    """The document of the project of this request in a folder; None: it is started there, perhaps again.

    Args:
        overwrite: another project may be there, which will be replaced; other files may not.
    """
    path = folder / PROJECT
    if not path.exists():
        check_new_folder(folder, fix="choose another folder")
        return None
    if overwrite:
        for recipe in folder.rglob(RECIPE):
            refuse_trained(recipe.parent)
        return None
    with reading_own(path, fix=IN_USE_FIX):
        document = read_own_json(path, fix=IN_USE_FIX)
        differences = differing(document["request"], asdict(request))
        files = document.get(FILES, {})
        changed = [
            path for path, checksum in request.checksums().items() if files.get(path, checksum) != checksum
        ]
    if differences:
        other = f"was made with other options: {'; '.join(differences)}"
        raise RecipeError(f"--output {folder}: {other}; {IN_USE_FIX}")
    if changed:
        raise RecipeError(
            f"{', '.join(changed)}: has changed since the project in {folder} began; {IN_USE_FIX}"
        )
    if PLANNED in document:
        return document
    if (folder / RESULT).exists():
        raise RecipeError(f"{path}: damaged (no '{PLANNED}'); {IN_USE_FIX}")
    return None


def tested_before(folder: Path) -> list[str]:
    """The test recordings of the project in a folder; empty if there is none."""
    path = folder / PROJECT
    with suppress(UserError), reading_own(path, fix=IN_USE_FIX):  # a damaged one may be replaced
        return [str(name) for name in read_own_json(path, fix=IN_USE_FIX)[TESTED]] if path.is_file() else []
    return []


def clear(folder: Path) -> None:
    """Remove the results, runs and lists of a project; a user's own files in its folders stay.

    The next report replaces the last one. The request goes last: without it, the folder is no project.
    """
    written = (folder.glob(f"{FOLDS}/*/{name}") for name in (RESULT, f"{REPORT}/index.html"))
    for file in (folder / RESULT, *chain(*written)):
        file.unlink(missing_ok=True)
    for run in (folder / PRETRAIN, folder / FINETUNE, *folder.glob(f"{FOLDS}/*/{FINETUNE}")):
        RunFolder(run).clear()
        (run / ENVIRONMENT).unlink(missing_ok=True)
    for file in (file for name in LIST_NAMES for file in (folder / LISTS).rglob(name)):
        file.unlink()
    for name in (RECIPE, PROJECT):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write project.json or result.json."""
    write_text(path, json_text(document, indent=2) + "\n")
