"""Decides whether a run starts in its folder, resumes the run that is there, or is refused.

Leftovers of killed processes are ignored: a run that has not started, and unfinished files.
"""

from __future__ import annotations

from pathlib import Path

from everest.config.recipe import RESUME_MAY_CHANGE, flat_values, load_recipe, recipe_values
from everest.config.settings import Recipe
from everest.engine.context import RunOptions
from everest.errors import RecipeError, differing, first_names
from everest.system.files import IN_USE_FIX, is_unfinished
from everest.system.locks import refuse_trained
from everest.system.run_folder import (
    ENVIRONMENT,
    OWN_FILES,
    RECIPE,
    STATE,
    TOKENIZER,
    Init,
    RunFolder,
    is_own_tokenizer,
    own_tokenizer,
)
from everest.tokenizer.clips import tokenizer_depends_on


def find_folder(recipe: Recipe, options: RunOptions, init: Init | None) -> tuple[RunFolder, bool]:
    """The folder of a run, and whether the run that is there is resumed. Nothing is written or removed."""
    run = RunFolder(options.folder(recipe.name))
    if run.path.exists():
        if not run.path.is_dir():
            raise RecipeError(f"--output {run.path}: a file is in the way; choose another folder")
        refuse_trained(run.path)
    if _is_free(run):
        if options.resumed_folder is not None:
            raise RecipeError(f"--resume {run.path}: there is no run to resume")
        return run, False
    if options.overwrite:
        _check_overwrite(run, recipe, options, init)
    else:
        _check_resume(run, recipe, options, init)
    return run, not options.overwrite


def _is_free(run: RunFolder) -> bool:
    """Whether the folder holds no run that has started, and no files of other programs."""
    if not run.path.exists():
        return True
    # The tokenizer's run in the folder may be at any step: it is trained first.
    names = {file.name for file in run.path.iterdir() if not is_unfinished(file.name)} - {TOKENIZER}
    if run.state.is_dir() and all(is_unfinished(file.name) for file in run.state.iterdir()):
        names.discard(STATE)
    if run.has_environment():
        names.discard(ENVIRONMENT)
    return not names


def _check_overwrite(run: RunFolder, recipe: Recipe, options: RunOptions, init: Init | None) -> None:
    """Refuse to remove what the run reads, and what no run has written."""
    read = [
        options.recipe_file,
        init and init.file,
        recipe.tokenizer and recipe.tokenizer.checkpoint,
        recipe.pretrain.teacher if options.command == "pretrain" else None,
    ]
    folder, tokenizer = run.path.resolve(), own_tokenizer(run.path).resolve()
    lost = [
        f"{name}, which the run reads"
        for name in map(Path, filter(None, read))
        # The stage of the tokenizer decides about its own.
        if name.resolve() != tokenizer and name.resolve().is_relative_to(folder)
    ]
    if not run.has_environment():
        foreign = [run.path / name for name in OWN_FILES if (run.path / name).exists()]
        lost += [f"{file}, which no run has written" for file in foreign]
    if lost:
        raise RecipeError(f"--output {run.path}: --overwrite would remove {lost[0]}; choose another folder")


def _check_resume(run: RunFolder, recipe: Recipe, options: RunOptions, init: Init | None) -> None:
    """Refuse a folder without a run, and a run with other settings."""
    place = f"--output {run.path}"
    if not (run.path / RECIPE).is_file():
        raise RecipeError(f"{place}: is not a run folder; choose another, or use --overwrite")
    if options.resume == "never":
        raise RecipeError(
            f"{place}: holds a run; leave out `--resume never` to resume it, or use --overwrite"
        )
    if not run.has_environment():
        raise RecipeError(
            f"{place}: {ENVIRONMENT} is missing or not of a run; restore it, or choose another folder"
        )
    differences = _differences(run, recipe, options, init)
    if differences:
        shown = first_names(differences, 3)
        raise RecipeError(
            f"{place}: holds a run with different settings: {shown}; use its values, or {IN_USE_FIX}"
        )


def _differences(run: RunFolder, recipe: Recipe, options: RunOptions, init: Init | None) -> list[str]:
    """The settings and options in which the run in the folder differs, each with both values."""
    saved = flat_values(recipe_values(load_recipe(run.path / RECIPE, imports=False)))
    given = flat_values(recipe_values(recipe))
    may_change = set(RESUME_MAY_CHANGE)
    if options.command == "train-tokenizer":
        may_change |= {key for key in saved.keys() | given.keys() if not tokenizer_depends_on(key, recipe)}
    # A frozen model may have been moved: its hash is compared with that in the weights when it is read.
    for key in ("tokenizer.checkpoint", "pretrain.target.teacher"):
        old, new = saved.get(key), given.get(key)
        is_own = is_own_tokenizer(str(old)) and Path(str(new)) == own_tokenizer(run.path).resolve()
        if old and new and (is_own or run.weights.is_file()):
            may_change.add(key)
    environment = run.environment()
    saved |= {"command": environment.stage, "--overfit-one-batch": environment.one_batch}
    given |= {"command": options.command, "--overfit-one-batch": options.one_batch}
    saved |= {"--init": environment.init, "--decoder": environment.decoder if init else None}
    given |= {"--init": init and init.file, "--decoder": init and init.decoder}
    return differing(*({key: of[key] for key in of if key not in may_change} for of in (saved, given)))
