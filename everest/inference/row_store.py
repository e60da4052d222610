"""Rows of tensors on the disk, from which a killed command resumes.

A row store is a folder with `plan.json`, a `Journal` of the samples, and a file of numbers for each tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import RecipeError
from everest.inference.windows import Unreadable
from everest.system.files import write_text, writing
from everest.system.journal import Journal, open_journal, write_all
from everest.system.text import read_own_json, reading_own

JOURNAL: Final = "journal.jsonl"
PLAN: Final = "plan.json"
SHAPES: Final = "shapes.json"

FIX: Final = "start again with --overwrite"
SampleEntry = tuple[str, str | None]  # a video, and why it has no row
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of a row of each tensor


class RowStore:
    """Rows of tensors in a folder, as many as the disk holds. `open_row_store` makes it.

    The numbers are flushed to the disk before the journal counts them: all rows of the journal are there.
    """

    entries: list[SampleEntry]
    shapes: Shapes

    def __init__(self, folder: Path, journal: Journal[SampleEntry], files: ExitStack) -> None:
        self.folder = folder
        self.entries = journal.entries
        self._journal = journal
        self._stack = files
        self.is_removed = False
        with reading_own(folder, fix=FIX):
            saved = read_own_json(folder / SHAPES, fix=FIX) if self.num_rows else {}
            self.shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in saved.items()}
            self._open_files()

    @property
    def num_rows(self) -> int:
        """The number of samples that have a row."""
        return sum(problem is None for _, problem in self.entries)

    def check_videos(self, videos: Sequence[str]) -> None:
        """Raise RecipeError if the store's samples are not the first of these videos."""
        if [video for video, _ in self.entries] != list(videos[: len(self.entries)]):
            raise RecipeError(f"{self.folder / JOURNAL}: has other videos; {FIX}")

    def add(self, video: str, row: dict[str, Tensor] | Unreadable) -> None:
        """Add the row of the next sample, or why it has none."""
        if isinstance(row, Unreadable):
            self.entries.append((video, row.reason))
        else:
            if not self.shapes:
                self.shapes = {name: (x.numpy().dtype.str, tuple(x.shape)) for name, x in row.items()}
                write_text(self.folder / SHAPES, json.dumps(self.shapes))
                self._open_files()
            with writing(self.folder):
                for name, value in row.items():
                    write_all(self._files[name], value.numpy().tobytes())
            self.entries.append((video, None))
        if self._journal.is_due:
            self.sync()

    def sync(self) -> None:
        """Flush all rows to the disk."""
        with writing(self.folder):
            for file in self._files.values():
                os.fsync(file.fileno())
        self._journal.save()

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
                raise ValueError(f"{file.tell()} bytes of {name} instead of {size}")
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
    path = folder / JOURNAL
    with open_journal(
        path, entry=lambda row: (row[0], row[1]), fix=FIX, batch=batch, restart=restart
    ) as journal:
        if restart:
            for file in (folder / PLAN, folder / SHAPES, *folder.glob("*.bin")):
                file.unlink(missing_ok=True)
        saved = read_own_json(folder / PLAN, fix=FIX) if journal.entries else saved_plan(folder)
        if saved is not None and saved != plan:
            names = ", ".join(name for name in {**plan, **saved} if plan.get(name) != saved.get(name))
            raise RecipeError(f"{folder}: its rows were begun with other {names}; undo that change, or {FIX}")
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
    return read_own_json(folder / PLAN, fix=FIX) if (folder / PLAN).is_file() else None
