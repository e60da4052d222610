"""The lock of a run folder: while a process trains the run, a file names the process."""

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
QUIET_SECONDS: Final = 600.0  # our choice: a run on another host that wrote nothing for this long is dead


def claim(run: Path) -> None:
    """Write running.json: from now until `release`, this process trains the run in the folder.

    Raises:
        RecipeError: another process of this host has claimed it, or does so at this moment.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        _take(run / RUNNING)
    except FileExistsError as error:
        if running_here(run) != os.getpid():
            raise RecipeError(
                f"--output {run}: another process trains it now; wait for it, or stop it first"
            ) from error
    except OSError as error:
        raise write_error(run, error) from error


def _take(marker: Path) -> None:
    """Write the marker, unless a live process has one there."""
    _remove_stale(marker)
    with marker.open("x") as file:
        try:
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
        except OSError:  # the disk is full
            marker.unlink()
            raise


def _remove_stale(marker: Path) -> None:
    """Remove the marker of a killed process, but not one that another process is writing now."""
    with suppress(FileNotFoundError):
        before = marker.read_bytes()
        status = marker.stat()
        # A young marker without contents: its process may still be writing it.
        is_young = status.st_size == 0 and time.time() - status.st_mtime < SECONDS_TO_WRITE
        if is_young or running_here(marker.parent) is not None:
            return
        aside = marker.with_name(f".{marker.name}.{uuid.uuid4().hex}")
        marker.rename(aside)
        if aside.read_bytes() == before:
            aside.unlink()
        else:  # another process was faster, and this is its marker
            aside.rename(marker)


def release(run: Path) -> None:
    """Remove running.json: the inverse of `claim`."""
    (run / RUNNING).unlink(missing_ok=True)


@contextmanager
def release_lock_after(run: Path) -> Iterator[None]:
    """Release a claimed run at the end of a block."""
    try:
        yield
    finally:
        release(run)


def is_running(run: Path) -> bool:
    """Whether a process trains the run.

    Processes of another host cannot be examined; there the run counts as running if it wrote recently.
    """
    marker = _read_marker(run)
    if marker is not None and marker["host"] != socket.gethostname():
        return time.time() - last_written(run) < QUIET_SECONDS
    return running_here(run) is not None


def running_here(run: Path) -> int | None:
    """The id of the process of this host that trains the run; None if there is none.

    A killed process leaves the file behind, and its id may since belong to another process, which is younger
    than the file.
    """
    marker = _read_marker(run)
    if marker is None or marker["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(marker["pid"])
        written = (run / RUNNING).stat().st_mtime
        # One second: both times are rounded.
        lives = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1
    except (OSError, psutil.Error):
        return None
    return marker["pid"] if lives else None


def _read_marker(run: Path) -> dict[str, Any] | None:
    """The values of running.json; None if it is missing, or damaged as a power cut may leave it."""
    try:
        values = json.loads((run / RUNNING).read_text())
        return {"host": str(values["host"]), "pid": int(values["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_written(run: Path) -> float:
    """The time of the run's last write, in seconds since 1970."""
    newest = 0.0
    for file in run.iterdir():
        with suppress(FileNotFoundError):  # a file that the run is replacing now, or a dangling link
            newest = max(newest, file.stat().st_mtime)
    return newest
