"""What a killed command resumes from: a journal of finished items, and rows of tensors on the disk.

A row store is a folder with `plan.json`, a `Journal` of the samples, and a file of numbers for each tensor.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf, PositiveInt, TypeAdapter
from torch import Tensor

from everest.errors import RecipeError
from everest.system.files import write_error, write_text
from everest.system.locks import sole_writer
from everest.system.text import is_plain, parse_json, read_json, validated

SYNC_SECONDS: Final = 1.0  # of work that a power failure may cost
JOURNAL: Final = "journal.jsonl"
PLAN: Final = "plan.json"
SHAPES: Final = "shapes.json"

Entry = TypeVar("Entry")
Value = TypeVar("Value")
SampleEntry = tuple[str, str | None]  # a video, and why it has no row
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of a row of each tensor

# Not `str`: names of videos need not be UTF-8.
_SAMPLE_ENTRY: Final[TypeAdapter[SampleEntry]] = TypeAdapter(tuple[InstanceOf[str], InstanceOf[str] | None])
_PLAN: Final = TypeAdapter(dict[str, Any])
_SHAPES: Final[TypeAdapter[Shapes]] = TypeAdapter(dict[str, tuple[str, tuple[PositiveInt, ...]]])
_NUMBERS: Final = frozenset(np.dtype(code).str for code in "?bBhHiIlLefd")


class Journal(Generic[Entry]):
    """A file of JSON values, one a line. `open_journal` makes it."""

    def __init__(self, path: Path, file: IO[bytes], entries: list[Entry], size: int) -> None:
        self.entries = entries
        self._path = path
        self._file = file
        self._size = size  # bytes
        self._synced = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the last sync was more than SYNC_SECONDS ago."""
        return time.monotonic() - self._synced > SYNC_SECONDS

    def add(self, entries: Sequence[Entry]) -> None:
        """Append JSON values, or dataclasses of such. A kill cannot lose them, a power failure can."""
        lines = b"".join(json.dumps(entry, default=asdict).encode() + b"\n" for entry in entries)
        try:
            self._file.truncate(self._size)  # a part that an interrupted call has written
            write_all(self._file, lines)
        except OSError as error:
            self._file.truncate(self._size)
            raise write_error(self._path, error) from error
        self.entries += entries
        self._size += len(lines)
        if self.is_due:
            self.sync()

    def sync(self) -> None:
        """Flush the entries to the disk, unless the file is closed."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def remove(self) -> None:
        """Close and remove the file. The lock stays until the block ends."""
        self._file.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def open_journal(
    path: Path, *, entry: TypeAdapter[Entry], fix: str, batch: int = 1, restart: bool = False
) -> Iterator[Journal[Entry]]:
    """Open a journal, or make it. An incomplete last line, which a kill leaves, is removed.

    Args:
        entry: of the type of the entries.
        fix: what to do if the file is damaged, for the message.
        batch: entries that are made together; an incomplete last batch is removed, too.
        restart: remove all entries, once the lock is held.
    """
    with sole_writer(path), ExitStack() as stack:
        try:
            # Unbuffered: closing the file does not repeat a write that has failed.
            file = stack.enter_context(path.open("a+b", buffering=0))
            if restart:
                file.truncate(0)
            file.seek(0)
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        except OSError as error:
            raise write_error(path, error) from error
        lines = lines[: len(lines) // batch * batch]
        try:
            entries = [validated(entry, parse_json(line)) for line in lines]
        except ValueError as error:
            raise RecipeError(f"{path}: damaged, or not a file of this command ({error}); {fix}") from error
        size = sum(map(len, lines))
        file.truncate(size)
        journal = Journal(path, file, entries, size)
        yield journal
        journal.sync()


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write all bytes to an unbuffered file, which may take a part at a time."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]


class RowStore:
    """Rows of tensors in a folder, as many as the disk holds. `open_row_store` makes it.

    The numbers are flushed to the disk before the journal counts them: all rows of the journal are there.
    """

    samples: list[SampleEntry]
    shapes: Shapes

    def __init__(self, folder: Path, journal: Journal[SampleEntry], files: ExitStack) -> None:
        self.folder = folder
        self.samples = list(journal.entries)
        self._journal = journal
        self._stack = files
        self.is_removed = False
        self.shapes = _read_json(folder / SHAPES, _SHAPES) or {}
        for name, (dtype, _) in self.shapes.items():
            if not is_plain(name) or dtype not in _NUMBERS:
                raise _damaged(folder, f"shapes.json: {name!r} of {dtype!r} is no tensor")
        if self.num_rows and not self.shapes:
            raise _damaged(folder, "shapes.json has no tensor")
        self._open_files()

    @property
    def num_rows(self) -> int:
        """The number of samples that have a row."""
        return sum(problem is None for _, problem in self.samples)

    def check_videos(self, videos: Sequence[str]) -> None:
        """Raise RecipeError if the store's samples are not the first of these videos."""
        if [video for video, _ in self.samples] != list(videos[: len(self.samples)]):
            raise _damaged(self.folder, "journal.jsonl has other videos")

    def add(self, video: str, row: dict[str, Tensor] | str) -> None:
        """Add the row of the next sample, or why it has none."""
        if isinstance(row, str):
            self.samples.append((video, row))
        else:
            shapes = {name: (x.numpy().dtype.str, tuple(x.shape)) for name, x in row.items()}
            if not self.shapes:
                self.shapes = shapes
                write_text(self.folder / SHAPES, json.dumps(self.shapes))
                self._open_files()
            if shapes != self.shapes:
                raise _damaged(self.folder, f"shapes.json has {self.shapes}, the rows {shapes}")
            try:
                for name, value in row.items():
                    write_all(self._files[name], value.numpy().tobytes())
            except OSError as error:
                raise write_error(self.folder, error) from error
            self.samples.append((video, None))
        if self._journal.is_due:
            self.sync()

    def sync(self) -> None:
        """Flush all rows to the disk."""
        try:
            for file in self._files.values():
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._journal.add(self.samples[len(self._journal.entries) :])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Each tensor (rows, …), mapped from the disk into memory."""
        self.sync()
        return {
            name: np.memmap(self.folder / f"{name}.bin", dtype=dtype, mode="c", shape=(self.num_rows, *shape))
            for name, (dtype, shape) in self.shapes.items()
        }

    def remove(self) -> None:
        """Remove the rows of the store; `open_row_store` then removes its folder. No array may be in use."""
        self.is_removed = True
        self._stack.close()  # Windows removes no open files
        self._journal.remove()
        for name in (*(f"{name}.bin" for name in self.shapes), SHAPES):
            (self.folder / name).unlink(missing_ok=True)

    def _open_files(self) -> None:
        """Open the file of each tensor, and remove rows that the journal does not count."""
        self._files: dict[str, IO[bytes]] = {}
        for name, (dtype, shape) in self.shapes.items():
            file = self._stack.enter_context((self.folder / f"{name}.bin").open("ab", buffering=0))
            size = self.num_rows * math.prod(shape) * np.dtype(dtype).itemsize
            if file.tell() < size:
                raise _damaged(self.folder, f"{file.tell()} bytes of {name} instead of {size}")
            file.truncate(size)
            self._files[name] = file


@contextmanager
def open_row_store(
    folder: Path, plan: dict[str, Any], *, batch: int, restart: bool = False
) -> Iterator[RowStore]:
    """Open a store, or make it.

    Args:
        plan: JSON values that the rows follow from; rows of another plan are not continued.
        batch: samples that are computed together; an incomplete batch is computed again.
        restart: remove all rows, once the lock is held.
    """
    fix = "start again with --overwrite"
    path = folder / JOURNAL
    with open_journal(path, entry=_SAMPLE_ENTRY, fix=fix, batch=batch, restart=restart) as journal:
        if restart:
            for file in (folder / PLAN, folder / SHAPES, *folder.glob("*.bin")):
                file.unlink(missing_ok=True)
        known = saved_plan(folder)
        if known is None and journal.entries:
            raise _damaged(folder, f"{PLAN} is missing")
        if known is not None and known != plan:
            names = ", ".join(name for name in {**plan, **known} if plan.get(name) != known.get(name))
            raise RecipeError(
                f"{folder}: holds rows of another command (other {names}); finish them with that command, or "
                "start again with --overwrite"
            )
        write_text(folder / PLAN, json.dumps(plan))
        with ExitStack() as files:
            store = RowStore(folder, journal, files)
            try:
                yield store
            finally:
                if not store.is_removed and folder.exists():
                    store.sync()
    if store.is_removed:
        # The plan last, after the lock: until then, a repeated command knows that the folder is its own.
        (folder / PLAN).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def saved_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the rows in a folder; None if there is none."""
    return _read_json(folder / PLAN, _PLAN)


def _read_json(file: Path, adapter: TypeAdapter[Value]) -> Value | None:
    """The value in a file of the store; None if there is no such file."""
    try:
        return validated(adapter, read_json(file)) if file.is_file() else None
    except ValueError as error:
        raise _damaged(file.parent, f"{file.name}: {error}") from error


def _damaged(folder: Path, problem: str) -> RecipeError:
    return RecipeError(f"{folder}: damaged ({problem}); start again with --overwrite")
