"""Locks: one process at a time writes a file or folder, and one process trains in a run folder.

`running.json` in a run folder names the process that trains.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Final

import psutil
from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter

from everest.errors import RecipeError
from everest.system.files import LOCK, write_error, write_text
from everest.system.json_text import read_json, validated


@contextmanager
def sole_writer(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Lock `path` while the block runs, by a file `.NAME.lock` next to it. A killed process loses the lock.

    Args:
        path: a file that need not exist; its folder is made.
        busy: the message if another process holds the lock; the default names the folder.
    """
    lock_file = path.with_name(f".{path.name}{LOCK}")
    lock = FileLock(lock_file, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        message = f"{path.parent}: another process writes there now; wait for it to end"
        raise RecipeError(busy or message) from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        # Some versions of filelock leave the file. It is removed while it is held: from 3.24, filelock does
        # not accept a lock on a removed file.
        with suppress(OSError):
            lock_file.unlink(missing_ok=True)
        lock.release()


RUNNING: Final = "running.json"
BEAT_SECONDS: Final = 20.0  # our choice: between two signs of life of a run, the times of its running.json
QUIET_SECONDS: Final = 120.0  # our choice: a run on another host without a sign for this long is dead


@dataclass(frozen=True)
class Trainer:
    """The process that trains a run: the contents of running.json."""

    pid: Annotated[int, Field(strict=True, gt=0)]
    host: str

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.host == socket.gethostname() else f" of host {self.host}")


_TRAINER: Final = TypeAdapter(Trainer)


def trainer_of(run: Path) -> Trainer | None:
    """The process that trains the run; None if there is none, or if running.json is damaged.

    A power failure may damage the file. A killed process leaves it behind. On this host, its id may since
    belong to another process, which is then younger than the file. Processes of another host cannot be looked
    up; they give signs of life.
    """
    try:
        return _read_trainer(run)
    except RecipeError:
        return None


def is_running(run: Path) -> bool:
    """Whether a process trains the run; RecipeError if running.json is damaged."""
    return _read_trainer(run) is not None


def _read_trainer(run: Path) -> Trainer | None:
    file = run / RUNNING
    try:
        trainer = validated(_TRAINER, read_json(file))
        written = file.stat().st_mtime
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: damaged ({error})") from error
    if trainer.host != socket.gethostname():
        return trainer if time.time() - written < QUIET_SECONDS else None
    try:
        process = psutil.Process(trainer.pid)
        # One second: both times are rounded.
        is_alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1
    except (OSError, psutil.Error):  # gone, or a number that is no process id
        return None
    return trainer if is_alive else None


def refuse_trained(run: Path) -> None:
    """Raise RecipeError if another process trains the run; the message names it."""
    trainer = trainer_of(run)
    if trainer is None or trainer == Trainer(os.getpid(), socket.gethostname()):
        return
    text = f"--output {run}: {trainer} trains it now; wait for it, or stop it first"
    if trainer.host != socket.gethostname():
        text += f" (a process that was killed counts as running for {QUIET_SECONDS:.0f} s)"
    raise RecipeError(text)


def claim(run: Path) -> None:
    """Write running.json: this process trains the run."""
    busy = f"--output {run}: another process trains it now; wait for it, or stop it first"
    with sole_writer(run / RUNNING, busy=busy):
        refuse_trained(run)
        write_text(run / RUNNING, json.dumps(asdict(Trainer(os.getpid(), socket.gethostname()))))


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Claim a run, give signs of life, and release it when the block ends, however it ends."""
    claim(run)
    ended = Event()

    def give_signs() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # the folder may be gone for a moment; if it stays so, the training fails
                os.utime(run / RUNNING)

    thread = Thread(target=give_signs, daemon=True, name="everest signs of life")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        (run / RUNNING).unlink(missing_ok=True)


def last_written(run: Path) -> float:
    """The time of the run's last write, in seconds since 1970."""
    newest = 0.0
    for file in run.iterdir():
        with suppress(FileNotFoundError):  # a temporary file that is gone already, or a dangling link
            newest = max(newest, file.stat().st_mtime)
    return newest
