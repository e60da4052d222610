"""Decides what a run does with its output folder: start, resume or refuse.

Traces of killed processes count as no run: a run that has not started, and unfinished files.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from everest.config.recipe import load_recipe, recipe_values
from everest.config.settings import Recipe
from everest.engine.context import RunOptions
from everest.errors import CheckpointError, RecipeError, differing, first_names
from everest.models.spec import ModelSpec
from everest.system.files import UNFINISHED, is_unfinished
from everest.system.locks import RUNNING, refuse_trained
from everest.system.run_environment import DECODER, INIT
from everest.system.run_folder import (
    ENVIRONMENT,
    ONE_BATCH,
    OWN_FILES,
    PLAN,
    RECIPE,
    STATE,
    TOKENIZER,
    RunFolder,
    is_own_tokenizer,
    own_tokenizer,
)
from everest.system.text import is_unicode
from everest.system.weights_header import read_header
from everest.tokenizer.clips import tokenizer_depends_on
from everest.tokenizer.targets import TeacherUse

# The name of a recipe, the folder of the same videos, and how these are read and states are saved.
MAY_CHANGE: Final = {
    "name",
    "summary",
    "data.root",
    "train.workers",
    "train.data_timeout",
    "train.save_every",
    "train.keep_states",
}
TOKENIZER_FILE: Final = "tokenizer.checkpoint"
TEACHER: Final = "pretrain.target.teacher"
SHOWN: Final = 3  # settings that differ, in a message
FIX: Final = "choose another folder, or use --overwrite"
# The command that writes weights of a kind, where it has another name.
COMMANDS: Final = {"classifier": "finetune", "encoder": "convert", "tokenizer": "train-tokenizer"}
_STATE: Final = re.compile(rf"\.step-\d+\.safetensors{re.escape(UNFINISHED)}")


def has_not_started(folder: Path) -> bool:
    """Whether a folder holds nothing but what a run writes before its recipe; true for an empty folder.

    The tokenizer's run inside the folder may be at any step, because it is trained first.
    """
    run = RunFolder(folder)
    names = {file.name for file in folder.iterdir() if not is_unfinished(file.name)} - {TOKENIZER, RUNNING}
    if run.state.is_dir() and all(is_unfinished(file.name) for file in run.state.iterdir()):
        names.discard(STATE)
    if run.read_env(PLAN) is not None:  # otherwise another program has written it
        names.discard(ENVIRONMENT)
    return not names


def remove_leftovers(run: RunFolder) -> None:
    """Remove the unfinished files of killed processes from a run that this process has claimed."""
    own = {f".{name}{UNFINISHED}" for name in (*OWN_FILES, RUNNING)}
    leftovers = [file for file in run.path.iterdir() if file.name in own]
    if run.state.is_dir():
        leftovers += [file for file in run.state.iterdir() if _STATE.fullmatch(file.name)]
    for file in leftovers:
        file.unlink()


def check_output(path: Path, recipe: Recipe, options: RunOptions) -> bool:
    """Whether a run into `path` resumes the one that is there. Nothing is written or removed.

    Raises:
        RecipeError: a process trains the run, or something else is at `path` and `overwrite` is not given,
            or `overwrite` would remove files that the run reads or that no run has written, or `path` is not
            UTF-8.
    """
    if not is_unicode(str(path)):
        raise RecipeError(
            f"--output {path}: not UTF-8, so its weights could not be read; choose another name"
        )
    if not path.exists():
        return False
    if not path.is_dir():
        raise RecipeError(f"--output {path}: a file is in the way; choose another folder")
    refuse_trained(path)
    if has_not_started(path):
        return False
    run = RunFolder(path)
    if options.overwrite:
        own = own_tokenizer(path).resolve()  # its own stage decides about it
        for source in _files_read(recipe, options):
            if source.resolve() != own and source.resolve().is_relative_to(path.resolve()):
                raise RecipeError(f"--output {path}: --overwrite would remove {source}, which the run reads")
        foreign = [name for name in OWN_FILES if (path / name).exists()]
        if foreign and run.read_env(PLAN) is None:
            raise RecipeError(
                f"--output {path}: --overwrite would remove {path / foreign[0]}, which no run has written; "
                "choose another folder"
            )
        return False
    if not (path / RECIPE).is_file():
        raise RecipeError(f"--output {path}: exists and is no run folder; choose another, or use --overwrite")
    if options.resume == "never":
        raise RecipeError(
            f"--output {path}: holds a run; leave out `--resume never` to resume it, or use --overwrite"
        )
    differences = _differences(run, recipe, options)
    if differences:
        shown = first_names(differences, SHOWN)
        raise RecipeError(
            f"--output {path}: holds a run with other settings: {shown}; give the run's own values, or {FIX}"
        )
    return True


def _files_read(recipe: Recipe, options: RunOptions) -> list[Path]:
    """The files of recipes and weights that a run reads."""
    names = [
        options.recipe_file,
        options.init and options.init.file,
        recipe.tokenizer and recipe.tokenizer.checkpoint,
        recipe.pretrain.teacher if options.command == "pretrain" else None,
    ]
    return [Path(name) for name in names if name]


def _differences(run: RunFolder, recipe: Recipe, options: RunOptions) -> list[str]:
    """The settings and options in which the run in the folder differs, each with both values."""
    try:
        then = flat(recipe_values(load_recipe(run.path / RECIPE, imports=False)))
    except RecipeError as error:
        raise RecipeError(
            f"{error}; the run's copy of its settings is damaged: restore it, or {FIX}"
        ) from error
    now, init = flat(recipe_values(recipe)), options.init
    may_change = set(MAY_CHANGE)
    if options.command == COMMANDS["tokenizer"]:
        may_change |= {key for key in then.keys() | now.keys() if not tokenizer_depends_on(key, recipe)}
    # A frozen model may have been moved: `require_same_frozen` compares its hash with that in the weights.
    saved = run.weights.is_file()
    old, new = then.get(TOKENIZER_FILE), now.get(TOKENIZER_FILE)
    if old and new and (saved or (is_own_tokenizer(old) and Path(new) == own_tokenizer(run.path).resolve())):
        may_change.add(TOKENIZER_FILE)
    if saved and then.get(TEACHER) and now.get(TEACHER):
        may_change.add(TEACHER)
    then |= {"--init": run.read_env(INIT), "--overfit-one-batch": bool(run.read_env(ONE_BATCH))}
    now |= {"--init": init and init.file, "--overfit-one-batch": options.one_batch}
    if init is not None:
        then["--decoder"], now["--decoder"] = run.read_env(DECODER), init.decoder
    with suppress(CheckpointError):  # weights that are damaged, or not there yet, are written from a state
        kind = read_header(run.weights).kind
        then["command"], now["command"] = COMMANDS.get(kind, kind), options.command
    return differing(*({key: of[key] for key in of if key not in may_change} for of in (then, now)))


def require_same_frozen(run: RunFolder, spec: ModelSpec) -> None:
    """Raise RecipeError if a run's weights were trained with another teacher or tokenizer than it has now."""
    if not run.weights.is_file():
        return
    settings = read_header(run.weights).settings
    for kind, use in (("teacher", spec.teacher), ("tokenizer", spec.tokenizer)):
        before = (settings.get(kind) or {}).get("sha256")
        if use is not None and before not in (None, use.sha256):
            name = use.name if isinstance(use, TeacherUse) else use.path
            raise RecipeError(
                f"--output {run.path}: holds a run with another {kind} than {name} is now; restore it, or "
                f"{FIX}"
            )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their keys with dots, such as `pretrain.base_lr`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
