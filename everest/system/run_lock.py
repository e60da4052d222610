"""Which process trains a run: `running.json` in the run folder names it while it does."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Final, NamedTuple

import psutil

from everest.errors import RecipeError
from everest.system.files import write_text
from everest.system.json_text import read_json
from everest.system.locks import sole_writer

RUNNING: Final = "running.json"
MOST_PIDS: Final = 2**31 - 1
BEAT_SECONDS: Final = 20.0  # our choice: between two signs of life of a run, the times of its running.json
QUIET_SECONDS: Final = 120.0  # our choice: a run on another host without a sign for this long is dead


class Trainer(NamedTuple):
    """The process that trains a run: the contents of running.json."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.host == socket.gethostname() else f" of host {self.host}")


def claim(run: Path) -> None:
    """Write running.json: from now until `release`, this process trains the run.

    Raises:
        RecipeError: another process trains the run, or claims it at this moment.
        EnvironmentProblem: the folder cannot be written.
    """
    busy = f"--output {run}: another process trains it now; wait for it, or stop it first"
    with sole_writer(run / RUNNING, busy=busy):
        refuse_trained(run)
        own = Trainer(os.getpid(), socket.gethostname())
        write_text(run / RUNNING, json.dumps(own._asdict()))


def refuse_trained(run: Path) -> None:
    """Raise RecipeError if another process trains the run; the message names it."""
    trainer = trainer_of(run)
    if trainer is None or trainer == (os.getpid(), socket.gethostname()):
        return
    text = f"--output {run}: {trainer} trains it now; wait for it, or stop it first"
    if trainer.host != socket.gethostname():
        text += f" (a process that was killed counts as running for {QUIET_SECONDS:.0f} s)"
    raise RecipeError(text)


def release(run: Path) -> None:
    """Remove running.json."""
    (run / RUNNING).unlink(missing_ok=True)


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Claim a run, give signs of life, and release it when the block ends, however it ends.

    Raises:
        UserError: see `claim`.
    """
    claim(run)
    ended = Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(
                OSError
            ):  # the folder may be gone for a moment: the training notices it if it stays
                os.utime(run / RUNNING)

    thread = Thread(target=beat, daemon=True, name="everest signs of life")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(run)


def trainer_of(run: Path) -> Trainer | None:
    """The process that trains the run; None if there is none.

    Processes of another host cannot be looked up; they give signs of life.
    """
    try:
        marker = _read_marker(run)
        if marker is None:
            return None
        if marker.host != socket.gethostname():
            age = time.time() - (run / RUNNING).stat().st_mtime
            return marker if age < QUIET_SECONDS else None
    except (RecipeError, FileNotFoundError):  # damaged, as after a power failure, or just released
        return None
    pid = running_here(run)
    return None if pid is None else Trainer(pid, marker.host)


def is_running(run: Path) -> bool:
    """Whether a process trains the run.

    Raises:
        RecipeError: running.json is damaged.
    """
    _read_marker(run)
    return trainer_of(run) is not None


def running_here(run: Path) -> int | None:
    """The id of the process of this host that trains the run; None if there is none.

    A killed process leaves the file behind, and its id may since belong to another process, which is then
    younger than the file.
    """
    try:
        marker = _read_marker(run)
    except RecipeError:  # as after a power failure
        return None
    if marker is None or marker.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(marker.pid)
        written = (run / RUNNING).stat().st_mtime
        # One second: both times are rounded.
        is_alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1
    except (OSError, psutil.Error, ValueError, OverflowError):  # the last two: no id of a process
        return None
    return marker.pid if is_alive else None


def _read_marker(run: Path) -> Trainer | None:
    """Read running.json; None if there is none.

    Raises:
        RecipeError: it is damaged.
    """
    path = run / RUNNING
    try:
        values = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: damaged ({error})") from error
    match values:
        case {"pid": int(pid), "host": str(host)} if 0 < pid <= MOST_PIDS:
            return Trainer(pid, host)
    raise RecipeError(f"{path}: damaged (it names no process)")


def last_written(run: Path) -> float:
    """The time of the run's last write, in seconds since 1970."""
    newest = 0.0
    for file in run.iterdir():
        with suppress(FileNotFoundError):  # a temporary file that is gone already, or a dangling link
            newest = max(newest, file.stat().st_mtime)
    return newest
