"""What `everest train` was asked for, and the folder that keeps it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import InstanceOf, TypeAdapter

from everest.config.heads import Task
from everest.config.merge import SET_OPTION, merge
from everest.config.recipe import load_recipe
from everest.config.recipe_files import RecipeFile
from everest.config.stage_settings import STAGES
from everest.errors import DataError, RecipeError, differing
from everest.lists.sources import LIST_FILES
from everest.system.files import (
    IN_USE_FIX,
    PART_SUFFIX,
    absolute_keeping_links,
    check_new_folder,
    refuse_inputs,
    write_text,
)
from everest.system.hub import TIMM_PREFIX, absolute_name
from everest.system.locks import refuse_running
from everest.system.moved_folder import PATHS_FILE, moved
from everest.system.run_folder import ENVIRONMENT_FILE, RECIPE_FILE, WEIGHTS_FILE, RunFolder
from everest.system.text import damage_errors, json_text, load_json, validate
from everest.video.folders import videos_by_subfolder
from everest_workflows.annotations.codings import BoutFilter
from everest_workflows.project.options import MIN_FOLDS, ProjectOptions
from everest_workflows.recordings.project_folder import (
    FINETUNE_FOLDER,
    FOLDS_FOLDER,
    MODEL_FOLDER,
    PROJECT_FILE,
    RESULT_FILE,
)
from everest_workflows.suggest.data_section import has_class_folders

LISTS: Final = "lists"
PRETRAIN: Final = "pretrain"
FEATURES_FOLDER: Final = f".features{PART_SUFFIX}"  # of the linear candidates, until the project is finished
REPORT: Final = "report"
WINDOWS: Final = "windows.csv"
LIST_NAMES: Final = (*LIST_FILES.values(), WINDOWS, "classes.txt", "windows_classes.txt")
BUDGETS: Final = tuple((stage, key) for stage in STAGES for key in ("steps", "epochs"))
# The choices of every suggested recipe that decide whether a key has an effect.
SUGGESTED: Final = RecipeFile(
    name="suggested",
    label=RECIPE_FILE,
    text="{base: custom, pretrain: {objective: views, steps: 1}, finetune: {steps: 1}}",
    folder=None,
)


@dataclass(frozen=True, kw_only=True)
class Request(ProjectOptions):
    """What was asked for; paths are absolute, also in `init` (see `everest.system.hub.absolute_name`)."""

    videos: InstanceOf[str]  # not `str`: names of files need not be UTF-8
    annotations: list[InstanceOf[str]] = field(default_factory=list)
    observers: list[str] = field(default_factory=list)
    unlabeled: InstanceOf[str] | None = None
    init: InstanceOf[str] | None = None
    task: Task | None = None
    overrides: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, videos: str | Path, **options: Any) -> Request:
        """The request for these videos; `options` are those of `ProjectOptions`."""
        given = ProjectOptions(**options)
        named: Any = given.annotations  # a notebook may give a single file
        files = [named] if isinstance(named, str | Path) else named or ()
        return cls(
            **vars(given)
            | {
                "videos": _format_path(videos),
                "annotations": sorted(set(map(_format_path, files))),
                "observers": sorted(given.observers or ()),
                "unlabeled": None if given.unlabeled is None else _format_path(given.unlabeled),
                "init": None if given.init in (None, "none") else absolute_name(given.init),
                "overrides": with_warmup(given.overrides or ()),
            }
        )

    @property
    def trains_network(self) -> bool:
        """Whether a network is a candidate; from weights on a CPU, which takes hours, only if asked for."""
        if self.model != "auto":
            return self.model == "network"
        has_time = self.hours is not None or torch.cuda.is_available()
        return self.init is None or self.compares_views or has_time

    @property
    def adapts(self) -> bool:
        """Whether image weights are adapted to the unlabeled videos."""
        return self.unlabeled is not None and (self.init or "").startswith(TIMM_PREFIX)

    @property
    def compares_views(self) -> bool:
        """Whether an encoder is pre-trained on the unlabeled videos between views, for all candidates."""
        return self.unlabeled is not None and not self.adapts

    @property
    def bout_filter(self) -> BoutFilter:
        return BoutFilter(observers=self.observers, subject=self.subject)

    def check(self, folder: Path) -> None:
        """Raise UserError for contradictions, and if `folder` contains an input or is inside one."""
        inputs = [("", Path(self.videos)), *(("--annotations ", Path(file)) for file in self.annotations)]
        inputs += [("--unlabeled ", Path(self.unlabeled))] if self.unlabeled is not None else []
        for option, path in inputs:
            if not path.exists():
                raise DataError(f"{option}{path}: no such file or folder")
            if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise RecipeError(f"--output {folder}: is inside of the input {path}; name another folder")
        refuse_inputs(folder, [path for _, path in inputs])
        if self.model == "linear" and self.hours is not None:
            raise RecipeError("--hours is for the network, which --model linear leaves out; use one of them")
        if (self.observers or self.subject) and not self.annotations:
            raise RecipeError("--observer and --subject choose among --annotations; name the files")
        if self.annotations and not Path(self.videos).is_dir():
            raise RecipeError(f"{self.videos}: not a folder; --annotations needs one of recordings")
        if self.folds is not None and self.folds < MIN_FOLDS:
            raise RecipeError(f"--folds {self.folds}: needs at least {MIN_FOLDS}")
        if self.hours is not None and not 0 < self.hours < float("inf"):
            raise RecipeError(f"--hours {self.hours}: must be a number above 0")
        if self.latency is not None and not 0 < self.latency < float("inf"):
            raise RecipeError(f"--latency {self.latency}: must be a number of milliseconds above 0")
        load_recipe(SUGGESTED, overrides=self.overrides, consistent=False)  # before the videos are read
        recipe = merge(SUGGESTED, self.overrides)
        set_keys = [key for key in BUDGETS if recipe.at(key).label == SET_OPTION]
        budgets = [key for key in set_keys if recipe.at(key).value is not None]
        if self.hours is not None and budgets:
            budget = f"--set {'.'.join(budgets[0])}={recipe.at(budgets[0]).value}"
            raise RecipeError(f"--hours and {budget} both set the number of steps; use one of them")

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files with the labels, and of the names in class folders, by their paths."""
        source = Path(self.videos)
        folder = source if source.is_dir() else source.parent
        prefix = "" if source.is_dir() else source.name.removesuffix(LIST_FILES["train"])
        lists = [folder / f"{prefix}{name}" for name in LIST_FILES.values()]
        paths = [source, *map(Path, self.annotations), *lists]
        checksums = {}
        for path in filter(Path.is_file, paths):
            with path.open("rb") as file:  # a video may be larger than the memory
                checksums[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        if source.is_dir() and not self.annotations and has_class_folders(str(source)):
            videos = chain.from_iterable(videos_by_subfolder(source).values())
            names = "\0".join(sorted(map(str, videos)))
            checksums[str(source)] = hashlib.sha256(os.fsencode(names)).hexdigest()
        return checksums


@dataclass(frozen=True, kw_only=True)
class ProjectLists:
    """The lists that a project trains and is tested on."""

    section: dict[str, Any]  # `data` of the recipe
    folds: Sequence[dict[str, str]]  # the lists of each fold, by their keys
    window: float | None  # seconds, of recordings
    possible_folds: int | None  # the folds that a repetition may ask for; None: it cannot
    are_given: bool = False  # the user's own lists
    left_out: Mapping[str, int] = field(default_factory=dict)  # records of the annotations, by reason
    subjects: Sequence[str] = ()  # whose bouts are taken together
    warnings: Sequence[str] = ()  # about the videos, for the plan and the summary


@dataclass(frozen=True, kw_only=True)
class Project(ProjectLists):
    """The document of project.json, once the lists and the recipe are written."""

    request: Request
    files: dict[InstanceOf[str], str]  # see `Request.checksums`
    planned_minutes: float
    trains_network: bool = True  # as planned, also if the project is resumed on another machine
    planned: bool = True


def read_project(folder: Path) -> Project:
    """The project in a folder; RecipeError if its document is damaged."""
    with damage_errors(folder / PROJECT_FILE, fix=IN_USE_FIX):
        document = load_json(folder / PROJECT_FILE, fix=IN_USE_FIX)
        return validate(TypeAdapter(Project), moved(document, folder))


def _format_path(path: str | Path) -> str:
    """An absolute path, the same from wherever it is named; a link keeps its name."""
    return str(absolute_keeping_links(Path(path)) if ".." in Path(path).parts else Path(path).absolute())


def with_warmup(overrides: Sequence[str]) -> list[str]:
    """The overrides, with a warm-up of a tenth of the steps where only a number of steps is set."""
    recipe = merge(SUGGESTED, overrides)
    added = []
    for stage in STAGES:
        steps = recipe.at((stage, "steps"))
        has_warmup = recipe.at((stage, "warmup_steps")).label == SET_OPTION
        if steps.label == SET_OPTION and isinstance(steps.value, int) and steps.value > 0 and not has_warmup:
            added.append(f"{stage}.warmup_steps={steps.value // 10}")
    return [*overrides, *added]


def find_project(folder: Path, request: Request, *, overwrite: bool) -> Project | None:
    """The project of this request in a folder; None if it has yet to be planned.

    With `overwrite`, another project in the folder will be replaced; other files are refused.
    """
    path = folder / PROJECT_FILE
    if not path.exists():
        check_new_folder(folder, fix="choose another folder")
        return None
    if overwrite:
        for recipe in folder.rglob(RECIPE_FILE):
            refuse_running(recipe.parent)
        return None
    with damage_errors(path, fix=IN_USE_FIX):
        document = load_json(path, fix=IN_USE_FIX)
        differences = differing(asdict(Request(videos="")) | document["request"], asdict(request))
        checksums = request.checksums()
        saved = checksums | document.get("files", {})
        changed = ", ".join(file for file in checksums if saved[file] != checksums[file])
    if differences:
        other = f"was made with other options: {'; '.join(differences)}"
        raise RecipeError(f"--output {folder}: {other}; {IN_USE_FIX}")
    if changed:
        raise RecipeError(f"{changed}: has changed since the project in {folder} began; {IN_USE_FIX}")
    if "planned" in document or (folder / RESULT_FILE).exists():
        return read_project(folder)
    return None


def clear_project(folder: Path) -> None:
    """Remove the results, models, runs and lists of a project; a user's own files and folders stay.

    The next report replaces the last one. The request stays: it marks the folder as a project.
    """
    folds = [*folder.glob(f"{FOLDS_FOLDER}/[0-9]*")]
    parts = [folder, *folds]
    lists = [folder / LISTS, *folder.glob(f"{LISTS}/fold[0-9]*")]
    models = [part / MODEL_FOLDER for part in parts]
    runs = [RunFolder(path) for path in (folder / PRETRAIN, *(part / FINETUNE_FOLDER for part in parts))]
    files = [part / RESULT_FILE for part in parts]  # first: a project with one counts as finished
    files += [fold / REPORT / "index.html" for fold in folds]
    files += [folder / RECIPE_FILE, folder / PATHS_FILE]
    files += [model / name for model in models for name in (WEIGHTS_FILE, RECIPE_FILE)]
    files += [path / name for path in lists for name in LIST_NAMES]
    for file in files:
        file.unlink(missing_ok=True)
    shutil.rmtree(folder / FEATURES_FOLDER, ignore_errors=True)
    for run in runs:
        run.clear()
        (run.path / ENVIRONMENT_FILE).unlink(missing_ok=True)
    folders = [folder / FOLDS_FOLDER, *folds, *lists, *models]
    folders += [path for run in runs for path in (run.path, run.state)]
    for path in sorted(folders, reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write project.json or result.json."""
    write_text(path, json_text(document, indent=2) + "\n")
