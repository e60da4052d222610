"""What the operating system grants: shared memory, disk, open files."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from everest.doctor.finding import GIB, Finding

SHARED: Final = Path("/dev/shm")
ENOUGH_SHARED: Final = GIB  # ours; a container has 64 MiB unless told, a batch of clips takes as much
ENOUGH_DISK: Final = 5 * GIB  # ours: states of a ViT-B run, twice
ENOUGH_FILES: Final = 1024  # ours: workers share their batches by open files


def check_system() -> Iterator[Finding]:
    """Shared memory, the disk of the working folder, the limit of open files."""
    if SHARED.is_dir():
        total = shutil.disk_usage(SHARED).total
        mend = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"
        yield _enough("shared memory", f"{total / GIB:.1f} GiB", total >= ENOUGH_SHARED, mend)
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    told = f"{free / GIB:.1f} GiB free at {here}"
    if not os.access(here, os.W_OK):
        yield _enough("disk", f"{here} cannot be written", False, "name another --output")
    else:
        yield _enough("disk", told, free >= ENOUGH_DISK, "free some space, or name another --output")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = limit == resource.RLIM_INFINITY
    told = "no limit" if unlimited else str(limit)
    yield _enough("open files", told, unlimited or limit >= ENOUGH_FILES, "run `ulimit -n 4096` before")


def _enough(name: str, found: str, enough: bool, mend: str) -> Finding:
    return Finding(name=name, state="ok" if enough else "warning", found=found, mend=None if enough else mend)
