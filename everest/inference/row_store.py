"""Rows of tensors on disk, from which a killed command resumes, with one or several processes.

The samples of a command are divided into units, whose rows do not depend on each other. A row store is a
folder with `plan.json` and, of each process, a `Journal` of its passes and a file of numbers for each tensor.
A process of a later call may complete a unit that another process began.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, TypeAdapter
from torch import Tensor

from everest.errors import EnvironmentProblem, RecipeError
from everest.inference.windows import Unreadable
from everest.system.accelerator import ALONE, Processes
from everest.system.files import is_unfinished, write_errors, write_text
from everest.system.journal import open_journal, write_all
from everest.system.locks import sole_writer
from everest.system.text import damage_errors, load_json, validate

PLAN_FILE: Final = "plan.json"
FIX: Final = "start again with --overwrite"

Result = Unreadable | None  # why a video or a window has no row; None: it has one


class Rows(NamedTuple):
    """The rows that a pass has added to the file of a tensor."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]  # (rows, …)
    first: NonNegativeInt  # number of the first one in the file


class Pass(NamedTuple):
    """What a forward pass of a process has added to a unit."""

    unit: NonNegativeInt
    num_earlier: NonNegativeInt  # results of the unit in earlier passes
    process: NonNegativeInt
    results: list[Result]
    rows: dict[str, Rows]  # of each tensor
    is_last: bool  # of the unit


_read_pass: Final = partial(validate, TypeAdapter(Pass))


class JoinedRows(NamedTuple):
    """What all processes have added, in the order of the units."""

    results: list[list[Result]]  # of each unit
    counts: dict[str, list[int]]  # rows of each tensor in each unit; tensors without rows are left out


class RowStore:
    """The rows that this process adds, and those of earlier calls. `open_row_store` makes it.

    Numbers are flushed to the disk before the journal counts them, so that no row of a journal is missing.
    """

    def __init__(self, folder: Path, earlier: list[Pass], processes: Processes, stack: ExitStack) -> None:
        self.folder = folder
        self.processes = processes
        self.is_open = True
        self.is_removed = False
        self._earlier_passes = earlier  # passes of earlier calls
        self._joined: list[Pass] = []
        self._stack = stack
        units = group_by_unit(earlier)
        self._results = defaultdict(
            list, {unit: [x for entry in passes for x in entry.results] for unit, passes in units.items()}
        )
        # In earlier calls only: what this call adds does not change which units a process has.
        self._completed_units = {unit for unit, passes in units.items() if passes[-1].is_last}
        path = folder / f"{processes.rank}.jsonl"
        self._journal = stack.enter_context(open_journal(path, make_entry=_read_pass, fix=FIX))
        self._files: dict[str, IO[bytes]] = {}
        self._counts: Counter[str] = Counter()  # rows of each tensor of this process
        sizes: Counter[str] = Counter()  # bytes
        with damage_errors(folder, fix=FIX):
            for entry in self._journal.entries:
                for name, (dtype, shape, _) in entry.rows.items():
                    self._counts[name] += shape[0]
                    sizes[name] += math.prod(shape) * np.dtype(dtype).itemsize
            for name, size in sizes.items():
                self._open(name, size)

    def results(self, unit: int) -> list[Result]:
        """The results of a unit so far."""
        return list(self._results[unit])

    @property
    def progress(self) -> tuple[int, int]:
        """The numbers of units that earlier calls completed, and of results in units that they began."""
        begun = [len(results) for unit, results in self._results.items() if unit not in self._completed_units]
        return len(self._completed_units), sum(begun)

    def remaining(self, num_units: int) -> tuple[list[int], list[int]]:
        """The unfinished units, of `num_units` in all: those of this process, and those of the others."""
        remaining = [unit for unit in range(num_units) if unit not in self._completed_units]
        own_units = remaining[self.processes.rank :: self.processes.num_processes]
        return own_units, sorted({*remaining}.difference(own_units))

    def add(self, unit: int, results: list[Result], rows: Mapping[str, Tensor], *, is_last: bool) -> None:
        """Add the results of a pass, and the tensors (rows, …) of those that have rows."""
        added_rows: dict[str, Rows] = {}
        with write_errors(self.folder):
            for name, tensor in rows.items():
                array = tensor.contiguous().numpy()
                if name not in self._files:
                    self._open(name, 0)
                write_all(self._files[name], array.tobytes())
                added_rows[name] = Rows(array.dtype.str, array.shape, self._counts[name])
                self._counts[name] += len(array)
        earlier = self._results[unit]
        entry = Pass(unit, len(earlier), self.processes.rank, results, added_rows, is_last)
        self._journal.entries.append(entry)
        earlier.extend(results)
        if self._journal.is_due:
            self.sync()

    def sync(self) -> None:
        """Flush all rows to the disk."""
        with write_errors(self.folder):
            for file in self._files.values():
                os.fsync(file.fileno())
        self._journal.save()

    def close(self) -> None:
        """Flush the rows of this process, and close its files."""
        if self.is_open:
            self.is_open = False
            with self._stack:
                self.sync()

    def join(self) -> JoinedRows | None:
        """Close the store, and wait for the others; returns the rows of all in the main process."""
        self.close()  # the main process removes the files
        added = self.processes.gather(self._journal.entries)
        if not added:
            return None
        earlier = (entry for entry in self._earlier_passes if entry.process >= len(added))
        units = group_by_unit([*earlier, *(entry for passes in added for entry in passes)])
        parts = [units[unit] for unit in sorted(units)]
        self._joined = [entry for passes in parts for entry in passes]
        results = [[result for entry in passes for result in entry.results] for passes in parts]
        counts: dict[str, list[int]] = {}
        for number, passes in enumerate(parts):
            for entry in passes:
                for name, rows in entry.rows.items():
                    counts.setdefault(name, [0] * len(parts))[number] += rows.shape[0]
        return JoinedRows(results, counts)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Each tensor (rows, …) of the joined rows, mapped from the disk into memory.

        Rows that are not in the order of the units are copied into one file first.
        """
        arrays: dict[str, NDArray[Any]] = {}
        with damage_errors(self.folder, fix=FIX):
            for name in dict.fromkeys(name for entry in self._joined for name in entry.rows):
                parts = [(entry.process, entry.rows[name]) for entry in self._joined if name in entry.rows]
                dtype, (_, *row), _ = parts[0][1]
                spans: list[list[int]] = []  # process, first row, and the one after the last
                for process, (_, (count, *_), first) in parts:
                    if spans and [spans[-1][0], spans[-1][2]] == [process, first]:
                        spans[-1][2] += count
                    elif count:
                        spans.append([process, first, first + count])
                mapped = []
                for process, first, end in spans:
                    file = self.folder / f"{process}.{name}.bin"
                    mapped.append(np.memmap(file, dtype=dtype, mode="c", shape=(end, *row))[first:])
                arrays[name] = mapped[0]
                if len(mapped) > 1:
                    joined_file = self.folder / f"all.{name}.bin"
                    with write_errors(self.folder), joined_file.open("wb") as file:
                        for part in mapped:
                            part.tofile(file)
                    shape = (sum(map(len, mapped)), *row)
                    arrays[name] = np.memmap(joined_file, dtype=dtype, mode="c", shape=shape)
        return arrays

    def remove(self) -> None:
        """Remove the rows; `open_row_store` then removes the folder. No array may be in use."""
        self.is_removed = True
        # Journals first, so that what remains after a kill counts nothing.
        for pattern in ("[0-9]*.jsonl", "*.bin"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _open(self, name: str, size: int) -> None:
        """Open the file of a tensor, and remove the rows after the bytes that the journal counts."""
        path = self.folder / f"{self.processes.rank}.{name}.bin"
        file = self._files[name] = self._stack.enter_context(path.open("ab", buffering=0))
        if file.tell() < size:
            raise ValueError(f"{file.tell()} bytes of {name} instead of {size}")
        file.truncate(size)


def group_by_unit(passes: Iterable[Pass]) -> dict[int, list[Pass]]:
    """The passes of each unit in order, up to the first that is lost."""
    units: dict[int, list[Pass]] = {}
    for entry in sorted(passes, key=lambda entry: entry[:2]):
        passes_of_unit = units.get(entry.unit)
        last = passes_of_unit[-1] if passes_of_unit else None
        num_results = 0 if last is None else last.num_earlier + len(last.results)
        if entry.num_earlier == num_results and (last is None or not last.is_last):
            units.setdefault(entry.unit, []).append(entry)
    return units


@contextmanager
def open_row_store(
    folder: Path, plan: dict[str, Any], *, restart: bool = False, processes: Processes = ALONE
) -> Iterator[RowStore]:
    """Open a row store, or create it.

    Args:
        plan: JSON values that determine the rows; rows of another plan are not continued.
        restart: remove all rows, once the lock is held.
        processes: divide the units; each of them must open the store.
    """

    def lock_and_read() -> list[Pass]:
        """Lock the folder until the block ends, and read the passes of earlier calls."""
        lock_stack.enter_context(sole_writer(folder / PLAN_FILE))
        journals = sorted(folder.glob("[0-9]*.jsonl"), key=lambda path: int(path.stem))
        earlier_passes: list[Pass] = []
        for path in journals:
            with open_journal(path, make_entry=_read_pass, fix=FIX, restart=restart) as journal:
                earlier_passes += journal.entries
        old_plan = None if restart else read_saved_plan(folder)
        if restart:
            for path in (*folder.glob("*.bin"), *journals):
                path.unlink()
        elif old_plan is None and earlier_passes:
            load_json(folder / PLAN_FILE, fix=FIX)  # the error of a missing file
        elif old_plan not in (None, plan):
            names = ", ".join(name for name in {**plan, **old_plan} if plan.get(name) != old_plan.get(name))
            raise RecipeError(f"{folder}: its rows were begun with other {names}; undo that change, or {FIX}")
        write_text(folder / PLAN_FILE, json.dumps(plan))
        return earlier_passes

    with ExitStack() as lock_stack:
        earlier_passes = processes.decide(lock_and_read)
        if not (folder / PLAN_FILE).is_file():
            raise EnvironmentProblem(
                f"{folder}: not on the disk of every process; write to a file system that all nodes share"
            )
        with ExitStack() as stack:
            store = RowStore(folder, earlier_passes, processes, stack)
            try:
                yield store
            finally:
                if folder.exists():
                    store.close()
    if store.is_removed:
        # The plan last, after the lock: until then, a repeated command knows that the folder is its own.
        leftovers = [path for path in folder.iterdir() if is_unfinished(path.name)]
        for path in (*leftovers, folder / PLAN_FILE):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def read_saved_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the rows in a folder; None if there is none."""
    return load_json(folder / PLAN_FILE, fix=FIX) if (folder / PLAN_FILE).is_file() else None
