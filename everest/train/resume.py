"""Whether a run may go into a folder: as a new run, as the continuation of the one there, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from everest.config.recipe import load_recipe, recipe_values
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.system.run_folder import (
    INIT,
    ONE_BATCH,
    OWN_FILES,
    PLAN,
    RECIPE,
    TOKENIZER,
    RunFolder,
    is_own_tokenizer,
    own_tokenizer,
)
from everest.system.run_lock import running_here
from everest.system.weights import read_weights, state_hash
from everest.system.weights_header import read_header

ELSEWHERE: Final = ("name", "data.root")  # may change: what a recipe is called, where the same videos lie
TOKENIZER_FILE: Final = "tokenizer.checkpoint"
SHOWN: Final = 3  # settings that differ, named in a message


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What tells one run from another, its videos apart."""

    recipe: Recipe
    init: str | None  # the weights that it starts from
    one_batch: bool
    sources: Sequence[Path] = ()  # files that the command reads: not to be overwritten


def check_output(path: Path, asked: RunRequest, *, resume: bool, overwrite: bool) -> bool:
    """Whether a run into `path` continues the one that is there. Nothing is written or removed.

    Raises:
        RecipeError: a process trains the run, or something else is at `path` and `overwrite` is not given,
            or `overwrite` would remove what is not a run's.
    """
    if not path.exists() or (path.is_dir() and {file.name for file in path.iterdir()} <= {TOKENIZER}):
        return False
    if not path.is_dir():
        raise RecipeError(f"--output {path}: a file is in the way; choose another folder")
    process = running_here(path)
    if process not in (None, os.getpid()):
        raise RecipeError(f"--output {path}: process {process} trains it now; wait for it, or stop it first")
    if overwrite:
        _check_replaceable(path, asked.sources)
        return False
    if not (path / RECIPE).is_file():
        raise RecipeError(f"--output {path}: exists and is no run folder; choose another, or use --overwrite")
    if not resume:
        raise RecipeError(
            f"--output {path}: holds a run; leave out --resume never to continue it, or use --overwrite"
        )
    _check_same(path, asked)
    return True


def _check_replaceable(path: Path, sources: Sequence[Path]) -> None:
    """Whether all that a new run would remove from `path` was written by a run."""
    read_from = [source for source in sources if source.resolve().is_relative_to(path.resolve())]
    if read_from:
        raise RecipeError(f"--output {path}: --overwrite would remove {read_from[0]}, which the run reads")
    foreign = [name for name in OWN_FILES if (path / name).exists()]
    if foreign and RunFolder(path).read_env(PLAN) is None:
        raise RecipeError(
            f"--output {path}: --overwrite would remove {path / foreign[0]}, which no run has written; "
            "choose another folder"
        )


def _check_same(path: Path, asked: RunRequest) -> None:
    run, mend = RunFolder(path), "choose another folder, or use --overwrite"
    differing = list(_differences(run, asked.recipe))
    if differing:
        more = ", …" if len(differing) > SHOWN else ""
        raise RecipeError(
            f"--output {path}: holds a run with other settings: {', '.join(differing[:SHOWN])}{more}; {mend}"
        )
    before = run.read_env(INIT)
    if before != asked.init:
        raise RecipeError(
            f"--output {path}: holds a run that started from {before or 'scratch'}, not from "
            f"{asked.init or 'scratch'}; {mend}"
        )
    if bool(run.read_env(ONE_BATCH)) != asked.one_batch:
        way = "without" if asked.one_batch else "with"
        raise RecipeError(f"--output {path}: holds a run {way} --overfit-one-batch; {mend}")


def _differences(run: RunFolder, recipe: Recipe) -> Iterator[str]:
    """The settings that differ, each with both values; one that is new since then had its default."""
    before, now = (dict(_flat(recipe_values(one))) for one in (load_recipe(run.path / RECIPE), recipe))
    for key in sorted(before.keys() | now.keys()):
        if key in ELSEWHERE or before.get(key) == now.get(key):
            continue
        if key != TOKENIZER_FILE or not _has_tokenizer(run, before.get(key), now.get(key)):
            yield f"{key} ({json.dumps(before.get(key))}, now {json.dumps(now.get(key))})"


def _has_tokenizer(run: RunFolder, before: str | None, now: str | None) -> bool:
    """Whether the run's model is trained with the tokenizer that is at `now`, wherever it was before."""
    if before is None or now is None or not Path(now).is_file():
        return False
    if not run.weights.is_file():  # it has not come to a save: all that can be said is that it is its own
        return is_own_tokenizer(before) and Path(now) == own_tokenizer(run.path).resolve()
    used = read_header(run.weights).settings.get("tokenizer") or {}
    return used.get("sha256") == state_hash(read_weights(Path(now)).tensors)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
