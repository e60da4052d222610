"""Rows of tensors on the disk, from which a killed command resumes, also as several processes.

The samples of a command are divided into units, whose rows do not depend on each other. A row store is a
folder with `plan.json` and, of each process, a `Journal` of its passes and a file of numbers for each tensor.
A unit may be begun by one process and ended by a process of a later call.
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
from everest.system.files import is_unfinished, write_text, writing
from everest.system.journal import open_journal, write_all
from everest.system.locks import sole_writer
from everest.system.text import read_own_json, reading_own, validated

PLAN: Final = "plan.json"
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
    before: NonNegativeInt  # results of the unit in earlier passes
    process: NonNegativeInt
    results: list[Result]
    rows: dict[str, Rows]  # of each tensor
    is_last: bool  # of the unit


_read_pass: Final = partial(validated, TypeAdapter(Pass))


class JoinedRows(NamedTuple):
    """What all processes have added, in the order of the units."""

    results: list[list[Result]]  # of each unit
    counts: dict[str, list[int]]  # rows of each tensor in each unit; without tensors that have none


class RowStore:
    """The rows that this process adds, and those of earlier calls. `open_row_store` makes it.

    The numbers are flushed to the disk before the journal counts them: all rows of a journal are there.
    """

    def __init__(self, folder: Path, known: list[Pass], processes: Processes, stack: ExitStack) -> None:
        self.folder = folder
        self.processes = processes
        self.is_open = True
        self.is_removed = False
        self._known = known  # passes of earlier calls
        self._joined: list[Pass] = []
        self._stack = stack
        units = by_unit(known)
        self._results = defaultdict(
            list, {unit: [x for made in passes for x in made.results] for unit, passes in units.items()}
        )
        # Those of earlier calls. What this call adds does not change which units a process has.
        self._ended = {unit for unit, passes in units.items() if passes[-1].is_last}
        path = folder / f"{processes.rank}.jsonl"
        self._journal = stack.enter_context(open_journal(path, entry=_read_pass, fix=FIX))
        self._files: dict[str, IO[bytes]] = {}
        self._counts: Counter[str] = Counter()  # rows of each tensor of this process
        sizes: Counter[str] = Counter()  # bytes
        with reading_own(folder, fix=FIX):
            for made in self._journal.entries:
                for name, (dtype, shape, _) in made.rows.items():
                    self._counts[name] += shape[0]
                    sizes[name] += math.prod(shape) * np.dtype(dtype).itemsize
            for name, size in sizes.items():
                self._open(name, size)

    def results(self, unit: int) -> list[Result]:
        """The results of a unit so far."""
        return list(self._results[unit])

    @property
    def done(self) -> tuple[int, int]:
        """The numbers of units that earlier calls have ended, and of results of those they have begun."""
        begun = [len(results) for unit, results in self._results.items() if unit not in self._ended]
        return len(self._ended), sum(begun)

    def remaining(self, units: int) -> tuple[list[int], list[int]]:
        """The units, of so many in all, that are not done: those of this process, and those of others."""
        left = [unit for unit in range(units) if unit not in self._ended]
        mine = left[self.processes.rank :: self.processes.count]
        return mine, sorted({*left}.difference(mine))

    def add(self, unit: int, results: list[Result], rows: Mapping[str, Tensor], *, is_last: bool) -> None:
        """Add the results of a pass, and the tensors (rows, …) of those that have rows."""
        added: dict[str, Rows] = {}
        with writing(self.folder):
            for name, tensor in rows.items():
                array = tensor.contiguous().numpy()
                if name not in self._files:
                    self._open(name, 0)
                write_all(self._files[name], array.tobytes())
                added[name] = Rows(array.dtype.str, array.shape, self._counts[name])
                self._counts[name] += len(array)
        earlier = self._results[unit]
        made = Pass(unit, len(earlier), self.processes.rank, results, added, is_last)
        self._journal.entries.append(made)
        earlier.extend(results)
        if self._journal.is_due:
            self.sync()

    def sync(self) -> None:
        """Flush all rows to the disk."""
        with writing(self.folder):
            for file in self._files.values():
                os.fsync(file.fileno())
        self._journal.save()

    def close(self) -> None:
        """End the rows of this process."""
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
        earlier = (made for made in self._known if made.process >= len(added))
        units = by_unit([*earlier, *(made for passes in added for made in passes)])
        parts = [units[unit] for unit in sorted(units)]
        self._joined = [made for passes in parts for made in passes]
        results = [[result for made in passes for result in made.results] for passes in parts]
        counts: dict[str, list[int]] = {}
        for number, passes in enumerate(parts):
            for made in passes:
                for name, rows in made.rows.items():
                    counts.setdefault(name, [0] * len(parts))[number] += rows.shape[0]
        return JoinedRows(results, counts)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Each tensor (rows, …) of the joined rows, mapped from the disk into memory.

        Rows that are not in the order of the units are copied into one file first.
        """
        arrays: dict[str, NDArray[Any]] = {}
        with reading_own(self.folder, fix=FIX):
            for name in dict.fromkeys(name for made in self._joined for name in made.rows):
                parts = [(made.process, made.rows[name]) for made in self._joined if name in made.rows]
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
                    whole = self.folder / f"all.{name}.bin"
                    with writing(self.folder), whole.open("wb") as file:
                        for part in mapped:
                            part.tofile(file)
                    shape = (sum(map(len, mapped)), *row)
                    arrays[name] = np.memmap(whole, dtype=dtype, mode="c", shape=shape)
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


def by_unit(passes: Iterable[Pass]) -> dict[int, list[Pass]]:
    """The passes of each unit in order, without those that follow on one that is lost."""
    units: dict[int, list[Pass]] = {}
    for made in sorted(passes, key=lambda made: made[:2]):
        known = units.get(made.unit)
        last = known[-1] if known else None
        done = 0 if last is None else last.before + len(last.results)
        if made.before == done and (last is None or not last.is_last):
            units.setdefault(made.unit, []).append(made)
    return units


@contextmanager
def open_row_store(
    folder: Path, plan: dict[str, Any], *, restart: bool = False, processes: Processes = ALONE
) -> Iterator[RowStore]:
    """Open a store, or make it.

    Args:
        plan: JSON values that the rows follow from; rows of another plan are not continued.
        restart: remove all rows, once the lock is held.
        processes: which divide the units; all of them open the store.
    """

    def begin() -> list[Pass]:
        """Lock the folder until the block ends, and read the passes of earlier calls."""
        locked.enter_context(sole_writer(folder / PLAN))
        journals = sorted(folder.glob("[0-9]*.jsonl"), key=lambda path: int(path.stem))
        known: list[Pass] = []
        for path in journals:
            with open_journal(path, entry=_read_pass, fix=FIX, restart=restart) as journal:
                known += journal.entries
        saved = None if restart else saved_plan(folder)
        if restart:
            for path in (*folder.glob("*.bin"), *journals):
                path.unlink()
        elif saved is None and known:
            read_own_json(folder / PLAN, fix=FIX)  # the error of a missing file
        elif saved not in (None, plan):
            names = ", ".join(name for name in {**plan, **saved} if plan.get(name) != saved.get(name))
            raise RecipeError(f"{folder}: its rows were begun with other {names}; undo that change, or {FIX}")
        write_text(folder / PLAN, json.dumps(plan))
        return known

    with ExitStack() as locked:
        known = processes.decide(begin)
        if not (folder / PLAN).is_file():
            raise EnvironmentProblem(
                f"{folder}: not on the disk of every process; write to a file system that all nodes share"
            )
        with ExitStack() as stack:
            store = RowStore(folder, known, processes, stack)
            try:
                yield store
            finally:
                if folder.exists():
                    store.close()
    if store.is_removed:
        # The plan last, after the lock: until then, a repeated command knows that the folder is its own.
        killed = [path for path in folder.iterdir() if is_unfinished(path.name)]
        for path in (*killed, folder / PLAN):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def saved_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the rows in a folder; None if there is none."""
    return read_own_json(folder / PLAN, fix=FIX) if (folder / PLAN).is_file() else None
