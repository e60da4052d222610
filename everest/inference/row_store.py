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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
Layout = dict[str, tuple[str, tuple[NonNegativeInt, ...]]]  # dtype and shape (rows, …) of each tensor


class Pass(NamedTuple):
    """What a forward pass has added to a unit."""

    unit: NonNegativeInt
    before: NonNegativeInt  # results of the unit in earlier passes
    results: list[Result]
    layout: Layout
    is_last: bool  # of the unit


_PASS: Final = TypeAdapter(Pass)
Passes = Mapping[int, Sequence[Pass]]  # by process


class Part(NamedTuple):
    """A pass, and where its rows are."""

    process: int
    first: Counter[str]  # the number of its first row in the file of each tensor
    made: Pass


class JoinedRows(NamedTuple):
    """What all processes have added, in the order of the units."""

    results: list[list[Result]]  # of each unit
    counts: dict[str, list[int]]  # rows of each tensor in each unit; without tensors that have none


class RowStore:
    """The rows that this process adds, and those of earlier calls. `open_row_store` makes it.

    The numbers are flushed to the disk before the journal counts them: all rows of a journal are there.
    """

    def __init__(self, folder: Path, known: Passes, processes: Processes, stack: ExitStack) -> None:
        self.folder = folder
        self.processes = processes
        self.is_open = True
        self.is_removed = False
        self._known = known
        self._parts: list[list[Part]] = []  # of each unit, once joined
        self._stack = stack
        units = by_unit(known)
        self._results = defaultdict(list, {unit: _results(parts) for unit, parts in units.items()})
        # Those of earlier calls. What this call adds does not change which units a process has.
        self._ended = {unit for unit, parts in units.items() if parts[-1].made.is_last}
        path = journal_of(folder, processes.rank)
        self._journal = stack.enter_context(open_journal(path, entry=_read_pass, fix=FIX))
        self._files: dict[str, IO[bytes]] = {}
        with reading_own(folder, fix=FIX):
            self._open_files()

    def results(self, unit: int) -> list[Result]:
        """The results of a unit so far."""
        return list(self._results[unit])

    @property
    def done(self) -> tuple[int, int]:
        """The numbers of units that earlier calls have ended, and of results of those they have begun."""
        others = [len(results) for unit, results in self._results.items() if unit not in self._ended]
        return len(self._ended), sum(others)

    def remaining(self, units: int) -> tuple[list[int], list[int]]:
        """The units, of so many in all, that are not done: those of this process, and those of others."""
        left = [unit for unit in range(units) if unit not in self._ended]
        mine = left[self.processes.rank :: self.processes.count]
        return mine, sorted({*left}.difference(mine))

    def add(self, unit: int, results: list[Result], rows: Mapping[str, Tensor], *, is_last: bool) -> None:
        """Add the results of a pass, and the tensors (rows, …) of those that have rows."""
        layout: Layout = {name: (x.numpy().dtype.str, tuple(x.shape)) for name, x in rows.items()}
        with writing(self.folder):
            for name, value in rows.items():
                if name not in self._files:
                    self._open(name, 0)
                write_all(self._files[name], value.contiguous().numpy().tobytes())
        before = self._results[unit]
        self._journal.entries.append(Pass(unit, len(before), results, layout, is_last))
        before.extend(results)
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
        self._known = {**self._known, **dict(enumerate(added))}
        units = by_unit(self._known)
        self._parts = [units[unit] for unit in sorted(units)]
        names = dict.fromkeys(
            name for of_unit in self._parts for part in of_unit for name in part.made.layout
        )
        return JoinedRows(
            results=[_results(of_unit) for of_unit in self._parts],
            counts={
                name: [sum(num_rows(part.made, name) for part in of_unit) for of_unit in self._parts]
                for name in names
            },
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Each tensor (rows, …) of the joined rows, mapped from the disk into memory."""
        parts = [part for of_unit in self._parts for part in of_unit]
        with reading_own(self.folder, fix=FIX):
            names = dict.fromkeys(name for part in parts for name in part.made.layout)
            return {name: self._array(name, parts) for name in names}

    def remove(self) -> None:
        """Remove the rows; `open_row_store` then removes the folder. No array may be in use."""
        self.is_removed = True
        for process in self._known:  # first, so that what remains after a kill counts nothing
            journal_of(self.folder, process).unlink(missing_ok=True)
        for path in self.folder.glob("*.bin"):
            path.unlink()

    def _array(self, name: str, parts: Sequence[Part]) -> NDArray[Any]:
        """Map a tensor from the disk into memory; rows that are not in order are copied into one file."""
        dtype, shape = next(part.made.layout[name] for part in parts if name in part.made.layout)
        spans: list[tuple[int, int, int]] = []  # process, first row, and the one after the last
        for part in parts:
            first, count = part.first[name], num_rows(part.made, name)
            if spans and spans[-1][::2] == (part.process, first):
                spans[-1] = (part.process, spans[-1][1], first + count)
            elif count:
                spans.append((part.process, first, first + count))
        mapped = [
            self._map(name, process, dtype, (last, *shape[1:]))[first:] for process, first, last in spans
        ]
        if len(mapped) == 1:
            return mapped[0]
        with writing(self.folder), numbers_of(self.folder, name, JOINED).open("wb") as file:
            for rows in mapped:
                rows.tofile(file)
        return self._map(name, JOINED, dtype, (sum(map(len, mapped)), *shape[1:]))

    def _map(self, name: str, process: int | str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.memmap(numbers_of(self.folder, name, process), dtype=dtype, mode="c", shape=shape)

    def _open_files(self) -> None:
        """Open the file of each tensor that the journal counts."""
        sizes: Counter[str] = Counter()
        for made in self._journal.entries:
            for name, (dtype, shape) in made.layout.items():
                sizes[name] += math.prod(shape) * np.dtype(dtype).itemsize
        for name, size in sizes.items():
            self._open(name, size)

    def _open(self, name: str, size: int) -> None:
        """Open the file of a tensor, and remove the rows after the bytes that the journal counts."""
        path = numbers_of(self.folder, name, self.processes.rank)
        file = self._files[name] = self._stack.enter_context(path.open("ab", buffering=0))
        if file.tell() < size:
            raise ValueError(f"{file.tell()} bytes of {name} instead of {size}")
        file.truncate(size)


JOINED: Final = "all"  # in place of the number of a process


def journal_of(folder: Path, process: int) -> Path:
    """The journal of a process."""
    return folder / f"{process}.jsonl"


def numbers_of(folder: Path, name: str, process: int | str) -> Path:
    """The file with the rows of a tensor that a process made."""
    return folder / f"{process}.{name}.bin"


def num_rows(made: Pass, name: str) -> int:
    """The rows of a tensor in a pass."""
    return made.layout[name][1][0] if name in made.layout else 0


def by_unit(passes: Passes) -> dict[int, list[Part]]:
    """The passes of each unit in order, without those that follow on one that is lost."""
    parts = []
    for process, of_process in passes.items():
        first: Counter[str] = Counter()
        for made in of_process:
            parts.append(Part(process, first.copy(), made))
            first.update({name: shape[0] for name, (_, shape) in made.layout.items()})
    units: dict[int, list[Part]] = {}
    for part in sorted(parts, key=lambda part: part.made[:2]):
        of_unit = units.setdefault(part.made.unit, [])
        last = of_unit[-1].made if of_unit else None
        following = (0, False) if last is None else (last.before + len(last.results), last.is_last)
        if (part.made.before, False) == following:
            of_unit.append(part)
    return {unit: of_unit for unit, of_unit in units.items() if of_unit}


def _results(parts: Sequence[Part]) -> list[Result]:
    return [result for part in parts for result in part.made.results]


def _read_pass(value: Any) -> Pass:
    return validated(_PASS, value)


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
    with ExitStack() as whole:
        known = processes.decide(lambda: _begin(folder, plan, whole, restart=restart))
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


def _begin(folder: Path, plan: dict[str, Any], stack: ExitStack, *, restart: bool) -> dict[int, list[Pass]]:
    """Lock the folder of a store, until the stack ends, and read the passes of earlier calls."""
    stack.enter_context(sole_writer(folder / PLAN))
    journals = {int(path.stem): path for path in folder.glob("[0-9]*.jsonl")}
    known: dict[int, list[Pass]] = {}
    for process, path in journals.items():
        with open_journal(path, entry=_read_pass, fix=FIX, restart=restart) as journal:
            known[process] = journal.entries
    saved = None if restart else saved_plan(folder)
    if restart:
        known = {}
        for path in (*folder.glob("*.bin"), *journals.values()):
            path.unlink()
    elif saved is None and any(known.values()):
        read_own_json(folder / PLAN, fix=FIX)  # the error of a missing file
    elif saved not in (None, plan):
        names = ", ".join(name for name in {**plan, **saved} if plan.get(name) != saved.get(name))
        raise RecipeError(f"{folder}: its rows were begun with other {names}; undo that change, or {FIX}")
    write_text(folder / PLAN, json.dumps(plan))
    return known


def saved_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the rows in a folder; None if there is none."""
    return read_own_json(folder / PLAN, fix=FIX) if (folder / PLAN).is_file() else None
