"""A journal of finished items, from which a killed command resumes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

from everest.system.files import write_errors
from everest.system.locks import sole_writer
from everest.system.text import damage_errors, parse_json

SYNC_SECONDS: Final = 1.0  # seconds of work that a power failure may cost

Entry = TypeVar("Entry")


class Journal(Generic[Entry]):
    """Entries that are saved to a file with one JSON value per line; made by `open_journal`.

    Append JSON values, or dataclasses of JSON values, to `entries`; `save` writes new entries.
    """

    def __init__(self, path: Path, file: IO[bytes], entries: list[Entry], size: int) -> None:
        self.entries = entries
        self._path = path
        self._file = file
        self._num_saved = len(entries)  # number of entries in the file
        self._size = size  # bytes of the file
        self._sync_time = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the last sync was more than SYNC_SECONDS ago."""
        return time.monotonic() - self._sync_time > SYNC_SECONDS

    def save(self) -> None:
        """Write the new entries, and flush them if that is due; only a power failure can then lose them."""
        new = self.entries[self._num_saved :]
        lines = b"".join(json.dumps(entry, default=asdict).encode() + b"\n" for entry in new)
        with write_errors(self._path):
            self._file.truncate(self._size)  # removes a partial write of an interrupted call
            write_all(self._file, lines)
            if self.is_due:
                os.fsync(self._file.fileno())
                self._sync_time = time.monotonic()
        self._size += len(lines)
        self._num_saved += len(new)

    def remove(self) -> None:
        """Close and remove the file. The lock is held until the block ends."""
        self._file.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def open_journal(
    path: Path, *, make_entry: Callable[[Any], Entry], fix: str, restart: bool = False
) -> Iterator[Journal[Entry]]:
    """Open or create a journal; remove an incomplete last line, which a killed process leaves.

    Args:
        make_entry: makes an entry from its JSON value.
        fix: the advice in the message if the file is damaged.
        restart: remove all entries once the lock is held.
    """
    with sole_writer(path), ExitStack() as stack:
        with write_errors(path):
            # Unbuffered: closing the file does not repeat a write that has failed.
            file = stack.enter_context(path.open("a+b", buffering=0))
            if restart:
                file.truncate(0)
            file.seek(0)
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        with damage_errors(path, fix=fix):
            entries = [make_entry(parse_json(line)) for line in lines]
        size = sum(map(len, lines))
        file.truncate(size)
        yield Journal(path, file, entries, size)


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write all bytes to an unbuffered file, whose `write` may write only some of them."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]
