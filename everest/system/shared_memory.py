"""Shared memory, by which worker processes hand over their batches: 64 MB in a container of Docker."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from everest.errors import EnvironmentProblem

FOLDER: Final = Path("/dev/shm")
REMEDY: Final = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"


def free_shared_memory() -> int | None:
    """The free bytes; None on a system without such a folder."""
    return shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else None


def few_workers_notice(workers: int, *, possible: int) -> str:
    """The sentence for a run that has fewer workers than its cores allow."""
    return (
        f"train.workers: auto starts {workers} of {possible} workers, because {_free_text()}; start the "
        "container with --shm-size=8g or --ipc=host for all of them"
    )


def _free_text() -> str:
    return f"{(free_shared_memory() or 0) / 1e6:.0f} MB of {FOLDER} are free"


def no_shared_memory(*, needed: int | None = None) -> EnvironmentProblem:
    """The error for batches that do not fit.

    Args:
        needed: bytes, if they are known.
    """
    megabytes = _free_text()
    if needed is not None:
        megabytes = f"the batches of the workers need {needed / 1e6:.0f} MB, {megabytes}"
    return EnvironmentProblem(f"too little shared memory ({megabytes}); {REMEDY}")


def require_shared_memory(needed: int) -> None:
    """Raise EnvironmentProblem if fewer than `needed` bytes are free."""
    free = free_shared_memory()
    if free is not None and needed > free:
        raise no_shared_memory(needed=needed)
