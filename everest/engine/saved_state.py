"""State files: all that an exact continuation needs, with a checksum.

`state/step-<n>.safetensors` holds tensors by part and name (everest.engine.state), and in its header the
step, the notes and a SHA-256 of all of these. The file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from everest.errors import CheckpointError, EnvironmentProblem, UserError
from everest.system.accelerator import decide_on_main
from everest.system.json_text import json_text, parse_json
from everest.system.weights import read_tensors, state_hash, write_tensors
from everest.system.weights_header import FORMAT, read_metadata

DAMAGED: Final = ".damaged"  # suffix of a state that is set aside
STATE_FORMAT: Final = f"{FORMAT}-state"
_NAME: Final = re.compile(r"step-([0-9]{9,16})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """The contents of a state file."""

    step: int  # updates done
    tensors: dict[str, Tensor]  # by part and name
    notes: dict[str, Any]  # plain values: counters, the state of fp16's loss scale

    def save(self, folder: Path, *, keep: int) -> None:
        """Write `step-<n>.safetensors`, and remove all states but the newest `keep`."""
        header = {"format": STATE_FORMAT, "step": str(self.step), "notes": json_text(self.notes)}
        header["sha256"] = _checksum(header, self.tensors)
        write_tensors(folder / state_name(self.step), self.tensors, metadata=header)
        for old in list(states_in(folder).values())[:-keep]:
            old.unlink()


def state_name(step: int) -> str:
    """The name of the state file after `step` updates."""
    return f"step-{step:09d}.safetensors"


def states_in(folder: Path) -> dict[int, Path]:
    """The states of a run by their steps, oldest first. Files with other names are ignored."""
    steps = {path: _NAME.fullmatch(path.name) for path in folder.glob("step-*.safetensors")}
    states = {int(match[1]): path for path, match in steps.items() if match}
    return {step: states[step] for step in sorted(states) if states[step].name == state_name(step)}


def read_state(path: Path) -> SavedState:
    """Read what `SavedState.save` wrote, and verify its checksum.

    Raises:
        CheckpointError: the file is damaged.
        EnvironmentProblem: the disk or its permissions prevent reading it.
    """
    header, tensors = read_metadata(path), read_tensors(path)
    checksum = header.pop("sha256", None)
    if header.keys() != {"format", "step", "notes"} or header["format"] != STATE_FORMAT:
        raise CheckpointError("its header is not that of a state")
    if checksum != _checksum(header, tensors):
        raise CheckpointError("its contents do not have the checksum that was saved with them")
    if path.name != state_name(int(header["step"])):
        raise CheckpointError(f"it is the state of step {header['step']}")
    return SavedState(step=int(header["step"]), tensors=tensors, notes=parse_json(header["notes"]))


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the header's texts and of all tensors with their names, types and shapes."""
    text = json_text([header["format"], header["step"], header["notes"], state_hash(tensors)])
    return hashlib.sha256(text.encode()).hexdigest()


def newest_state(
    folder: Path,
    *,
    notify: Callable[[str], None],
    check: Callable[[SavedState], None] = lambda state: None,
    accelerator: Accelerator | None = None,
) -> SavedState | None:
    """Read the newest intact state of a run; None if it has no states. Damaged ones are reported and skipped.

    Args:
        check: raises CheckpointError for a state that cannot be one of the run.
        accelerator: of several processes, which all read the states: one is intact if it is for all of them.
    Raises:
        CheckpointError: there are states, and all are damaged.
        EnvironmentProblem: a process cannot see or read one.
    """

    def paths_here() -> list[Path]:
        return list(states_in(folder).values())

    paths = paths_here() if accelerator is None else decide_on_main(accelerator, paths_here)
    first_problem = ""
    for path in reversed(paths):
        state, problem = _try_state(path, check)
        problems = [problem] if accelerator is None else gather_object([problem])
        for error in problems:
            if isinstance(error, EnvironmentProblem):
                raise error
        damage = next((str(error) for error in problems if error is not None), None)
        if damage is None:
            return state
        reason = damage.removeprefix(f"{path}: ")
        notify(f"{path}: damaged, skipped ({reason})")
        first_problem = first_problem or f" ({path.name}: {reason})"
    if paths:
        raise CheckpointError(
            f"{folder}: all its states are damaged{first_problem}; put back a copy of one, or start the run "
            "again with --overwrite"
        )
    return None


def _try_state(path: Path, check: Callable[[SavedState], None]) -> tuple[SavedState | None, UserError | None]:
    """Read and check a state in this process; returns it, or why it cannot be used."""
    if not path.exists() and not path.is_symlink():
        problem = f"{path}: not there for every process; a run folder is on storage that all of them share"
        return None, EnvironmentProblem(problem)
    try:
        state = read_state(path)
        check(state)
    except (CheckpointError, EnvironmentProblem) as error:
        return None, error
    return state, None


def set_aside(path: Path) -> Path:
    """Rename a damaged state, so that it neither counts as a state nor is removed; returns the new path."""
    suffixes = itertools.chain([""], map("-{}".format, itertools.count(2)))
    targets = (path.with_name(f"{path.stem}{DAMAGED}{suffix}") for suffix in suffixes)
    return path.rename(next(target for target in targets if not target.exists()))
