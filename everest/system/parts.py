"""A folder of parts, from which a killed command resumes, with one or several processes.

The work of a command is divided into units, whose results do not depend on each other. A part has the results
of a unit, or of some of it, and their tensors; it has its name only when it is complete. The name says which
results it has, so a process of a later call goes on with a unit that another process began.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import EnvironmentProblem, RecipeError
from everest.system.accelerator import ALONE, Processes
from everest.system.files import is_unfinished, write_errors, write_text
from everest.system.locks import sole_writer
from everest.system.text import damage_errors, load_json, parse_json
from everest.system.weights import write_tensors
from everest.system.weights_header import open_safetensors

PLAN_FILE: Final = "plan.json"
FIX: Final = "start again with --overwrite"
MAX_UNIT: Final = 256  # heuristic: most samples of a unit
MIN_UNITS: Final = 64  # heuristic: units of a long list, so that several processes get about the same
MAX_SECONDS: Final = 10.0  # work that a kill may cost
MAX_BYTES: Final = 2**26  # tensors that wait in memory for the next part


class Part(NamedTuple):
    """The results of a unit that a file has, by its name."""

    unit: int
    first: int  # results of the unit in earlier parts
    end: int
    is_last: bool  # of the unit

    @property
    def name(self) -> str:
        return f"{self.unit:08d}-{self.first:08d}-{self.end:08d}{'-last' * self.is_last}.safetensors"

    @staticmethod
    def find(folder: Path) -> list[Part]:
        """The parts of a folder."""
        pattern = re.compile(r"(\d{8,})-(\d{8,})-(\d{8,})(-last)?\.safetensors")
        matches = filter(None, (pattern.fullmatch(path.name) for path in folder.glob("*.safetensors")))
        return [Part(*map(int, match.group(1, 2, 3)), is_last=bool(match[4])) for match in matches]


class JoinedParts(NamedTuple):
    """What all processes have added, in the order of the units."""

    results: list[list[Any]]  # of each unit, JSON values
    counts: dict[str, list[int]]  # rows of each tensor in each unit; tensors without rows are left out
    arrays: dict[str, NDArray[Any]]  # each tensor (rows, …), mapped from the disk into memory


class Parts:
    """The parts that this process adds, and those of earlier calls. `open_parts` makes it."""

    def __init__(self, folder: Path, earlier: list[Part], processes: Processes) -> None:
        self.folder = folder
        self.processes = processes
        self.is_removed = False
        self._earlier = group_by_unit(earlier)
        self._added: list[Part] = []
        self._results: list[Any] = []  # of the present unit, which wait for the next part
        self._rows: dict[str, list[Tensor]] = {}
        self._waiting = 0  # bytes of these rows
        self._written_time = time.monotonic()

    def progress(self) -> tuple[list[int], int]:
        """The units that earlier calls completed, and the number of results in units that they began."""
        lasts = [parts[-1] for parts in self._earlier.values()]
        completed = [part.unit for part in lasts if part.is_last]
        return completed, sum(part.end for part in lasts if not part.is_last)

    def own(self, num_units: int) -> list[int]:
        """The units of this process that are not done, of `num_units` in all."""
        done = set(self.progress()[0])
        remaining = [unit for unit in range(num_units) if unit not in done]
        return remaining[self.processes.rank :: self.processes.num_processes]

    def results(self, unit: int) -> list[Any]:
        """The results of a unit in earlier calls."""
        return [result for part in self._earlier.get(unit, ()) for result in self._read(part)[0]]

    def add(self, unit: int, results: list[Any], rows: Mapping[str, Tensor], *, is_last: bool = True) -> None:
        """Add results (JSON values) of a unit, and the tensors (rows, …) of those that have rows.

        They are written with the last ones of the unit, or before, so that a kill costs little.
        """
        self._results += results
        for name, tensor in rows.items():
            self._rows.setdefault(name, []).append(tensor)
            self._waiting += tensor.nbytes
        if is_last or self._waiting > MAX_BYTES or time.monotonic() - self._written_time > MAX_SECONDS:
            is_begun = self._added and self._added[-1].unit == unit
            before = self._added if is_begun else self._earlier.get(unit)
            first = before[-1].end if before else 0
            part = Part(unit, first, first + len(self._results), is_last)
            tensors = {name: torch.cat(tensors) for name, tensors in self._rows.items()}
            texts = {"results": json.dumps(self._results), "tensors": json.dumps([*tensors])}
            write_tensors(self.folder / part.name, tensors, metadata=texts)
            self._added.append(part)
            self._results, self._rows, self._waiting = [], {}, 0
            self._written_time = time.monotonic()

    def joined(self) -> JoinedParts | None:
        """Wait for all processes; the main one gets what all have added, the others None."""
        added = self.processes.gather(self._added)
        if not added:
            return None
        earlier = (part for parts in self._earlier.values() for part in parts)
        units = group_by_unit([*earlier, *(part for parts in added for part in parts)])
        joined = JoinedParts([[] for _ in units], {}, {})
        shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        with ExitStack() as stack, write_errors(self.folder):
            files: dict[str, IO[bytes]] = {}
            for number, unit in enumerate(sorted(units)):
                for part in units[unit]:
                    results, arrays = self._read(part)
                    joined.results[number].extend(results)
                    for name, array in arrays.items():
                        if name not in files:
                            files[name] = stack.enter_context((self.folder / f"{name}.bin").open("wb"))
                            shapes[name] = array.dtype, array.shape[1:]
                        array.tofile(files[name])
                        joined.counts.setdefault(name, [0] * len(units))[number] += len(array)
        for name, (dtype, row) in shapes.items():
            file, shape = self.folder / f"{name}.bin", (sum(joined.counts[name]), *row)
            joined.arrays[name] = (
                np.memmap(file, dtype, mode="c", shape=shape) if all(shape) else np.zeros(shape, dtype)
            )
        return joined

    def remove(self) -> None:
        """Remove the parts; `open_parts` then removes the folder. No array may be in use."""
        self.is_removed = True
        clear_parts(self.folder)

    def _read(self, part: Part) -> tuple[list[Any], dict[str, NDArray[Any]]]:
        """The results and the tensors of a part."""
        path = self.folder / part.name
        with damage_errors(path, fix=FIX), open_safetensors(path) as file:
            results, names = (parse_json(file.metadata()[key]) for key in ("results", "tensors"))
            if len(results) != part.end - part.first:
                raise ValueError(f"{len(results)} results instead of {part.end - part.first}")
            return results, {name: file.get_tensor(name) for name in names}


def divide(count: int, *, batch: int) -> list[range]:
    """Divide samples into units of whole batches: the indices of each."""
    size = max(min(count // MIN_UNITS, MAX_UNIT) // batch, 1) * batch
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def group_by_unit(parts: Iterable[Part]) -> dict[int, list[Part]]:
    """The parts of each unit in order, up to the first that is missing."""
    units: dict[int, list[Part]] = {}
    for part in sorted(parts):
        earlier = units.get(part.unit)
        end, is_done = (earlier[-1].end, earlier[-1].is_last) if earlier else (0, False)
        if part.first == end and not is_done:
            units.setdefault(part.unit, []).append(part)
    return units


def clear_parts(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        path.unlink()


@contextmanager
def open_parts(
    folder: Path, plan: dict[str, Any], *, restart: bool = False, processes: Processes = ALONE
) -> Iterator[Parts]:
    """Open a folder of parts, or create it.

    Args:
        plan: JSON values that determine the results; parts of another plan are not continued.
        restart: remove all parts, once the lock is held.
        processes: divide the units; each of them must open the folder.
    """

    def lock_and_find() -> list[Part]:
        """Lock the folder until the block ends, and find the parts of earlier calls."""
        stack.enter_context(sole_writer(folder / PLAN_FILE))
        if restart:
            clear_parts(folder)
        found, old_plan = Part.find(folder), None if restart else read_saved_plan(folder)
        parts = [part for parts in group_by_unit(found).values() for part in parts]
        if old_plan is None and found:
            load_json(folder / PLAN_FILE, fix=FIX)  # the error of a missing file
        elif old_plan not in (None, plan):
            names = ", ".join(name for name in {**plan, **old_plan} if plan.get(name) != old_plan.get(name))
            raise RecipeError(f"{folder}: its rows were begun with other {names}; undo that change, or {FIX}")
        for part in {*found}.difference(parts):  # of a removal that was killed
            (folder / part.name).unlink()
        write_text(folder / PLAN_FILE, json.dumps(plan))
        return parts

    with ExitStack() as stack:
        earlier = processes.decide(lock_and_find)
        if not (folder / PLAN_FILE).is_file():
            raise EnvironmentProblem(
                f"{folder}: not on the disk of every process; write to a file system that all nodes share"
            )
        yield (parts := Parts(folder, earlier, processes))
    if parts.is_removed:
        # The plan last, after the lock: until then, a repeated command knows that the folder is its own.
        leftovers = [path for path in folder.iterdir() if is_unfinished(path.name)]
        for path in (*leftovers, folder / PLAN_FILE):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def read_saved_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the parts in a folder; None if there is none."""
    return load_json(folder / PLAN_FILE, fix=FIX) if (folder / PLAN_FILE).is_file() else None
