"""Which process trains the run of a folder: a file says so while it does."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from everest.files import write_text

RUNNING: Final = "running.json"
QUIET_SECONDS: Final = 600.0  # ours: a run on another host that has written nothing for so long is dead


@contextmanager
def marked_as_running(run: Path) -> Iterator[None]:
    """While this lasts, running.json of a run folder says which process trains."""
    marker = run / RUNNING
    write_text(marker, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def is_running(run: Path) -> bool:
    """Whether a process trains the run.

    On another host nobody can be asked; there the run must have written of late.
    """
    told = _told(run)
    if told is not None and told["host"] != socket.gethostname():
        return time.time() - last_written(run) < QUIET_SECONDS
    return running_here(run) is not None


def running_here(run: Path) -> int | None:
    """The number of the process of this host that trains the run; None when none does.

    A killed process leaves the file behind, and its number may since belong to another one: that one is
    younger than the file.
    """
    told = _told(run)
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


def _told(run: Path) -> dict[str, Any] | None:
    """What running.json says; None where it is missing or damaged, as a power cut may leave it."""
    try:
        told = json.loads((run / RUNNING).read_text())
        return {"host": str(told["host"]), "pid": int(told["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_written(run: Path) -> float:
    """When the run last wrote, in seconds since 1970."""
    return max((file.stat().st_mtime for file in run.iterdir()), default=0.0)
