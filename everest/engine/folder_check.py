"""Decides whether a run folder is free, holds the run to resume, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from everest.config.recipe import RESUME_MAY_CHANGE, flat_values, load_recipe, recipe_values
from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.errors import OptionError, differing, join_first
from everest.system.files import IN_USE_FIX, is_unfinished
from everest.system.locks import refuse_running
from everest.system.run_folder import (
    ENVIRONMENT_FILE,
    RECIPE_FILE,
    RUN_FILES,
    STATE_FOLDER,
    InitFile,
    RunFolder,
)


@dataclass(frozen=True, kw_only=True)
class FolderRules:
    """What a stage declares about its run folder."""

    # Whether a resume may change the setting of a key, because the stage does not depend on it.
    may_change: Callable[[str], bool] = lambda key: False
    # Keys of the files of frozen networks. A file may have been moved: its hash is compared with that in the
    # weights of the run when it is read.
    frozen: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()  # folders of stages that are trained inside the run folder


@dataclass(frozen=True, kw_only=True)
class FolderCheck:
    """The check of a run folder before a run; files that killed processes left unfinished are ignored."""

    run: RunFolder
    recipe: Recipe
    options: RunOptions
    init_file: InitFile | None
    rules: FolderRules

    def is_resumed(self) -> bool:
        """Whether the folder already holds the run; RecipeError if the run cannot use the folder."""
        run, options = self.run, self.options
        names: set[str] = set()  # files of a run that has started, or of other programs
        if run.path.exists():
            if not run.path.is_dir():
                raise OptionError(f"output {run.path}: a file is in the way; choose another folder")
            refuse_running(run.path)
            names = {file.name for file in run.path.iterdir() if not is_unfinished(file.name)}
            names -= {*self.rules.inner}  # their stages come first, and may be at any step
            if run.state.is_dir() and all(is_unfinished(file.name) for file in run.state.iterdir()):
                names.discard(STATE_FOLDER)
            if run.has_environment():
                names.discard(ENVIRONMENT_FILE)
        if not names and options.must_exist:
            raise OptionError(f"resume {run.path}: there is no run to resume")
        if names and options.overwrite:
            self._check_overwrite()
        elif names:
            self._check_resume()
        return bool(names) and not options.overwrite

    def _check_overwrite(self) -> None:
        """Refuse to remove what the run reads, and what no run has written."""
        run, values = self.run, flat_values(recipe_values(self.recipe))
        inputs = [self.options.recipe_file, self.init_file and self.init_file.file]
        inputs += [values.get(key) for key in self.rules.frozen]
        inner = [(run.path / name).resolve() for name in self.rules.inner]
        lost = [
            f"{path}, which the run reads"
            for path in map(Path, filter(None, inputs))
            if path.resolve().is_relative_to(run.path.resolve())
            and not any(path.resolve().is_relative_to(folder) for folder in inner)
        ]
        if not run.has_environment():
            foreign = [run.path / name for name in RUN_FILES if (run.path / name).exists()]
            lost += [f"{file}, which no run has written" for file in foreign]
        if lost:
            raise OptionError(f"output {run.path}: --overwrite would remove {lost[0]}; choose another folder")

    def _check_resume(self) -> None:
        """Refuse a folder without a run, and a run with other settings."""
        run, options, init_file = self.run, self.options, self.init_file
        folder = f"output {run.path}"
        if not (run.path / RECIPE_FILE).is_file():
            raise OptionError(f"{folder}: is not a run folder; choose another, or use --overwrite")
        if options.resume == "never":
            raise OptionError(f"{folder}: holds a run, and resume is off; {IN_USE_FIX}")
        if not run.has_environment():
            raise OptionError(
                f"{folder}: {ENVIRONMENT_FILE} is missing or not of a run; restore it, or choose another "
                "folder"
            )
        saved = flat_values(recipe_values(load_recipe(run.path / RECIPE_FILE, imports=False)))
        requested = flat_values(recipe_values(self.recipe))
        may_change = {*RESUME_MAY_CHANGE, "train.micro_batch"}  # the plan refuses another size
        may_change |= set(filter(self.rules.may_change, saved.keys() | requested.keys()))
        may_change |= {
            key for key in self.rules.frozen if self._may_have_moved(saved.get(key), requested.get(key))
        }
        saved, requested = (
            {key: x for key, x in each.items() if key not in may_change} for each in (saved, requested)
        )
        environment = run.read_environment()
        before = {"command": environment.stage, "--overfit-one-batch": environment.one_batch}
        now = {"command": options.stage, "--overfit-one-batch": options.one_batch}
        before |= {"--init": environment.init, "--decoder": environment.decoder if init_file else None}
        now |= {"--init": init_file and init_file.file, "--decoder": init_file and init_file.decoder}
        if differences := [*differing(before, now), *differing(saved, requested)]:
            shown = join_first(differences, 3)
            raise OptionError(
                f"{folder}: holds a run with different settings: {shown}; use its values, or {IN_USE_FIX}"
            )

    def _may_have_moved(self, old: str | None, new: str | None) -> bool:
        """Whether `new` may be the file `old`: its hash is compared later, or it moved with the folder."""
        if not old or not new or self.run.weights.is_file():
            return bool(old and new)
        folder, path = self.run.path.resolve(), Path(new)
        inner = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
        return bool(inner) and Path(old).parts[-len(inner) :] == inner
