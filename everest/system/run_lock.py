"""Which process trains the run of a folder: a file says so while it does."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from everest.errors import RecipeError
from everest.system.files import write_error

RUNNING: Final = "running.json"
SECONDS_TO_WRITE: Final = 5.0
QUIET_SECONDS: Final = 600.0  # ours: a run on another host that has written nothing for so long is dead


def claim(run: Path) -> None:
    """Write running.json: from here on this process trains the run of a folder, until `release`.

    Raises:
        RecipeError: another process of this host has claimed it, or does so at this moment.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        _take(run / RUNNING)
    except FileExistsError as error:
        if running_here(run) != os.getpid():
            told = f"--output {run}: another process trains it now; wait for it, or stop it first"
            raise RecipeError(told) from error
    except OSError as error:
        raise write_error(run, error) from error


def _take(marker: Path) -> None:
    """Make the marker, whole, unless a process that lives has."""
    _remove_stale(marker)
    with marker.open("x") as file:
        try:
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
        except OSError:  # the disk is full
            marker.unlink()
            raise


def _remove_stale(marker: Path) -> None:
    """Remove what a killed process has left, and nothing that another one writes at this moment."""
    with suppress(FileNotFoundError):
        before = marker.read_bytes()
        if running_here(marker.parent) is not None or _being_written(marker):
            return
        aside = marker.with_name(f".{marker.name}.{uuid.uuid4().hex}")
        marker.rename(aside)
        if aside.read_bytes() == before:
            aside.unlink()
        else:  # of a process that was faster
            aside.rename(marker)


def release(run: Path) -> None:
    """The inverse of `claim`."""
    (run / RUNNING).unlink(missing_ok=True)


@contextmanager
def release_lock_after(run: Path) -> Iterator[None]:
    """Around the work that a run was claimed for."""
    try:
        yield
    finally:
        release(run)


def _being_written(marker: Path) -> bool:
    """Whether a marker without contents is so young that its process may still be writing it."""
    try:
        found = marker.stat()
    except FileNotFoundError:
        return False
    return found.st_size == 0 and time.time() - found.st_mtime < SECONDS_TO_WRITE


def is_running(run: Path) -> bool:
    """Whether a process trains the run.

    On another host nobody can be asked; there the run must have written of late.
    """
    told = _read_marker(run)
    if told is not None and told["host"] != socket.gethostname():
        return time.time() - last_written(run) < QUIET_SECONDS
    return running_here(run) is not None


def running_here(run: Path) -> int | None:
    """The number of the process of this host that trains the run; None when none does.

    A killed process leaves the file behind, and its number may since belong to another one: that one is
    younger than the file.
    """
    told = _read_marker(run)
    if told is None or told["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(told["pid"])
        written = (run / RUNNING).stat().st_mtime
        # One second: both times are rounded.
        lives = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1
    except (OSError, psutil.Error):
        return None
    return told["pid"] if lives else None


def _read_marker(run: Path) -> dict[str, Any] | None:
    """What running.json says; None where it is missing or damaged, as a power cut may leave it."""
    try:
        told = json.loads((run / RUNNING).read_text())
        return {"host": str(told["host"]), "pid": int(told["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_written(run: Path) -> float:
    """When the run last wrote, in seconds since 1970."""
    newest = 0.0
    for file in run.iterdir():
        with suppress(FileNotFoundError):  # a file of a run that writes at this moment, or a dangling link
            newest = max(newest, file.stat().st_mtime)
    return newest
