"""Rows of tensors on the disk, one after another: as many as the disk holds, and found again after a kill.

A folder with a file of raw numbers for every tensor and `journal.jsonl`, a line for every sample in turn. The
numbers are flushed to the disk before the line that counts them, so what the journal counts is there.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from everest.errors import RecipeError
from everest.system.files import write_error, write_text

SYNC_SECONDS: Final = 1.0  # of work that a kill may cost


class RowStore:
    """Rows of tensors in a folder; use as a context.

    Args:
        plan: what the rows are made of and how, as JSON values: those of another plan are not continued.
        batch: samples that are computed together; a batch of which a part is missing is made again.
    Raises:
        RecipeError: the folder holds rows of another plan, or another process writes it now.
        EnvironmentProblem: the disk is full or read-only.
    """

    shapes: dict[str, tuple[str, tuple[int, ...]]]  # type and shape of a row of each tensor
    samples: list[tuple[str, str | None]]  # each video, and why it has no row

    def __init__(self, folder: Path, plan: dict[str, Any], *, batch: int) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = (folder / "journal.jsonl").open("a+b")
        except OSError as error:
            raise write_error(folder, error) from error
        try:
            self._begin(plan, batch)
        except BaseException:
            self._journal.close()
            raise

    def _begin(self, plan: dict[str, Any], batch: int) -> None:
        try:  # the lock goes with the process, however that ends
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"{self.folder}: another process writes it now; wait for it") from None
        before = self._read_json("plan.json")
        if before is not None and before != plan:
            differ = ", ".join(name for name in plan if plan[name] != before.get(name))
            raise RecipeError(
                f"{self.folder}: holds a part of other work (other {differ}); finish that by "
                "its own command, or begin again with --overwrite"
            )
        write_text(self.folder / "plan.json", json.dumps(plan))
        shapes = self._read_json("shapes.json") or {}
        self.shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}
        self._journal.seek(0)
        lines = [line for line in self._journal.readlines() if line.endswith(b"\n")]
        lines = lines[: len(lines) // batch * batch]
        try:
            self.samples = [(video, problem) for video, problem in map(json.loads, lines)]
        except ValueError as error:
            raise self._damaged(f"its journal: {error}") from error
        self._journal.truncate(sum(map(len, lines)))
        self._files = {name: self._open(name) for name in self.shapes}
        self._pending: list[bytes] = []
        self._synced = time.monotonic()

    @property
    def num_rows(self) -> int:
        """The samples that have no problem."""
        return sum(problem is None for _, problem in self.samples)

    def add(self, video: str, found: dict[str, Tensor] | str) -> None:
        """The row of the next sample, or why it has none.

        Raises:
            EnvironmentProblem: the disk is full.
        """
        if not isinstance(found, str):
            self._write(found)
        self.samples.append((video, found if isinstance(found, str) else None))
        self._pending.append(json.dumps(self.samples[-1]).encode() + b"\n")
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Put on the disk what was added.

        Raises:
            EnvironmentProblem: the disk is full.
        """
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._journal.write(b"".join(self._pending))
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._pending = []
        self._synced = time.monotonic()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Each tensor (rows, …), left on the disk and read where it is touched."""
        self.sync()
        return {
            name: np.memmap(self._path(name), dtype=dtype, mode="c", shape=(self.num_rows, *shape))
            for name, (dtype, shape) in self.shapes.items()
        }

    def remove(self) -> None:
        """The end of the folder."""
        shutil.rmtree(self.folder)

    def _write(self, row: dict[str, Tensor]) -> None:
        if not self.shapes:
            self.shapes = {name: (value.numpy().dtype.str, tuple(value.shape)) for name, value in row.items()}
            write_text(self.folder / "shapes.json", json.dumps(self.shapes))
            self._files = {name: self._open(name) for name in self.shapes}
        try:
            for name, value in row.items():
                assert tuple(value.shape) == self.shapes[name][1]
                self._files[name].write(value.contiguous().numpy().data)
        except OSError as error:
            raise write_error(self.folder, error) from error

    def _open(self, name: str) -> IO[bytes]:
        """A file of numbers, cut to the rows that the journal counts."""
        dtype, shape = self.shapes[name]
        file, size = self._path(name).open("ab"), self.num_rows * math.prod(shape) * np.dtype(dtype).itemsize
        if file.tell() < size:
            raise self._damaged(f"{file.tell()} bytes of {name} where there were {size}")
        file.truncate(size)
        return file

    def _damaged(self, what: object) -> RecipeError:
        return RecipeError(f"{self.folder}: damaged ({what}); begin again with --overwrite")

    def _read_json(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError as error:
            raise self._damaged(f"{name}: {error}") from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.folder.exists():
                self.sync()
        finally:
            for file in (*self._files.values(), self._journal):
                file.close()
