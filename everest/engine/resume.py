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
from everest.system.run_environment import DECODER, INIT, Init
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
from everest.tokenizer.feature_targets import TeacherUse

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
    """Remove the unfinished files of killed processes from a run folder; one may be as large as a state.

    Only the process that has claimed the run may call it.
    """
    own = {f".{name}{UNFINISHED}" for name in (*OWN_FILES, RUNNING)}
    for file in run.path.iterdir():
        if file.name in own:
            file.unlink()
    for file in run.state.iterdir() if run.state.is_dir() else ():
        if _STATE.fullmatch(file.name):
            file.unlink()


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
STAGES: Final = {  # the command that writes weights, by their kind
    "pretrain": "pretrain",
    "classifier": "finetune",
    "encoder": "convert",
    "tokenizer": "train-tokenizer",
}


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
    if options.overwrite:
        tokenizer = None if recipe.tokenizer is None else recipe.tokenizer.checkpoint
        init = None if options.init is None else options.init.file
        teacher = recipe.pretrain.teacher if options.command == "pretrain" else None
        own = own_tokenizer(path).resolve()  # its own stage decides about it
        named = (options.recipe_file, init, tokenizer, teacher)
        for source in (Path(name) for name in named if name is not None):
            if source.resolve() != own and source.resolve().is_relative_to(path.resolve()):
                raise RecipeError(f"--output {path}: --overwrite would remove {source}, which the run reads")
        foreign = [name for name in OWN_FILES if (path / name).exists()]
        if foreign and RunFolder(path).read_env(PLAN) is None:
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
    _check_same(path, recipe, options)
    return True


def _check_same(path: Path, recipe: Recipe, options: RunOptions) -> None:
    """Raise RecipeError if the run in `path` is not the requested one."""
    run = RunFolder(path)
    if run.weights.is_file():
        with suppress(CheckpointError):  # damaged weights are written again from a state
            stage = STAGES[read_header(run.weights).kind]
            if stage != options.command:
                raise RecipeError(f"--output {path}: holds a run of {stage}, not of {options.command}; {FIX}")
    _check_settings(path, recipe, options.command)
    _check_init(path, options.init)
    if bool(run.read_env(ONE_BATCH)) != options.one_batch:
        way = "without" if options.one_batch else "with"
        raise RecipeError(f"--output {path}: holds a run {way} --overfit-one-batch; {FIX}")


def _check_settings(path: Path, recipe: Recipe, command: str) -> None:
    """Raise RecipeError if the run in `path` differs in a setting that its stage depends on."""
    try:
        then = flat(recipe_values(load_recipe(path / RECIPE, imports=False)))
    except RecipeError as error:
        raise RecipeError(
            f"{error}; the run's copy of its settings is damaged: restore it, or {FIX}"
        ) from error
    now = flat(recipe_values(recipe))
    may_change = set(MAY_CHANGE)
    if command == STAGES["tokenizer"]:
        may_change |= {key for key in then.keys() | now.keys() if not tokenizer_depends_on(key, recipe)}
    # A frozen model may have been moved: `require_same_frozen` compares its hash with that in the weights.
    saved = RunFolder(path).weights.is_file()
    old, new = then.get(TOKENIZER_FILE), now.get(TOKENIZER_FILE)
    if old and new and (saved or (is_own_tokenizer(old) and Path(new) == own_tokenizer(path).resolve())):
        may_change.add(TOKENIZER_FILE)
    if saved and then.get(TEACHER) and now.get(TEACHER):
        may_change.add(TEACHER)
    differences = differing(
        {key: value for key, value in then.items() if key not in may_change},
        {key: value for key, value in now.items() if key not in may_change},
    )
    if differences:
        raise RecipeError(
            f"--output {path}: holds a run with other settings: {first_names(differences, SHOWN)}; use --set "
            f"to give the run's own values, {FIX}"
        )


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


def _check_init(path: Path, init: Init | None) -> None:
    """Raise RecipeError if the run in `path` started from other weights."""
    run = RunFolder(path)
    before, decoder = run.read_env(INIT), run.read_env(DECODER)
    now = None if init is None else init.file
    if before != now:
        raise RecipeError(
            f"--output {path}: holds a run that started from {before or 'scratch'}, not from "
            f"{now or 'scratch'}; {FIX}"
        )
    if init is not None and decoder != init.decoder:
        way = f"with --decoder {decoder}" if decoder else "without --decoder"
        raise RecipeError(f"--output {path}: holds a run {way}; {FIX}")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their keys with dots, such as `pretrain.base_lr`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
