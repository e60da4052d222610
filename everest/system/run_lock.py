"""Which process trains a run: `running.json` in the run folder names it while it does."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from everest.errors import RecipeError
from everest.system.files import write_text
from everest.system.json_text import read_json
from everest.system.locks import sole_writer

RUNNING: Final = "running.json"
MOST_PIDS: Final = 2**31 - 1
QUIET_SECONDS: Final = 600.0  # our choice: a run on another host that has not written for this long is dead


def claim(run: Path) -> None:
    """Write running.json: from now until `release`, this process trains the run.

    Raises:
        RecipeError: another process of this host trains the run, or claims it at this moment.
        EnvironmentProblem: the folder cannot be written.
    """
    busy = f"--output {run}: another process trains it now; wait for it, or stop it first"
    with sole_writer(run / RUNNING, busy=busy):
        if running_here(run) not in (None, os.getpid()):
            raise RecipeError(busy)
        write_text(run / RUNNING, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def release(run: Path) -> None:
    """Remove running.json."""
    (run / RUNNING).unlink(missing_ok=True)


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Claim a run, and release it when the block ends, however it ends.

    Raises:
        UserError: see `claim`.
    """
    claim(run)
    try:
        yield
    finally:
        release(run)


def is_running(run: Path) -> bool:
    """Whether a process trains the run.

    Processes of another host cannot be looked up; there, the run counts as running while it writes files.

    Raises:
        RecipeError: running.json is damaged.
    """
    marker = _read_marker(run)
    if marker is not None and marker.host != socket.gethostname():
        return time.time() - last_written(run) < QUIET_SECONDS
    return running_here(run) is not None


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


class _Marker(NamedTuple):
    """The contents of running.json."""

    pid: int
    host: str


def _read_marker(run: Path) -> _Marker | None:
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
            return _Marker(pid, host)
    raise RecipeError(f"{path}: damaged (it names no process)")


def last_written(run: Path) -> float:
    """The time of the run's last write, in seconds since 1970."""
    newest = 0.0
    for file in run.iterdir():
        with suppress(FileNotFoundError):  # a temporary file that is gone already, or a dangling link
            newest = max(newest, file.stat().st_mtime)
    return newest
