"""Traces of killed processes in a run folder: a run that has not started, and unfinished files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from everest.system.files import UNFINISHED, is_unfinished
from everest.system.run_folder import ENVIRONMENT, OWN_FILES, PLAN, STATE, TOKENIZER, RunFolder
from everest.system.run_lock import RUNNING

HEADER_BYTES: Final = 2**20  # at the start of a safetensors file: more than the header of any model here
_STATE: Final = re.compile(rf"\.step-\d+\.safetensors{re.escape(UNFINISHED)}")
_SAFETENSORS: Final = re.compile(r"\.tmp\w{6}")


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
        if file.name in own or _is_of_safetensors(file):
            file.unlink()
    for file in run.state.iterdir() if run.state.is_dir() else ():
        if _STATE.fullmatch(file.name) or _is_of_safetensors(file):
            file.unlink()


def _is_of_safetensors(file: Path) -> bool:
    """Whether safetensors made the file for everest; earlier versions of everest left it there."""
    if not _SAFETENSORS.fullmatch(file.name) or not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as opened:
        return b'"format":"everest' in opened.read(HEADER_BYTES)
