"""Checks of the limits of the operating system: shared memory, disk, open files."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from everest.profiling.check_result import GIB, CheckResult, at_least
from everest.system.shared_memory import REMEDY, free_shared_memory

ENOUGH_SHARED: Final = GIB  # our choice; a container has 64 MiB by default, a batch of clips takes as much
ENOUGH_DISK: Final = 5 * GIB  # our choice: states of a ViT-B run, twice
ENOUGH_FILES: Final = 1024  # our choice: workers share their batches by open files


def check_system() -> Iterator[CheckResult]:
    """Check shared memory, the disk of the working folder, and the limit of open files."""
    shared = free_shared_memory()
    if shared is not None:
        yield at_least("shared memory", f"{shared / GIB:.2f} GiB free", shared >= ENOUGH_SHARED, REMEDY)
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if os.access(here, os.W_OK):
        fix = "free some space, or name another --output"
        yield at_least("disk", f"{free / GIB:.1f} GiB free at {here}", free >= ENOUGH_DISK, fix)
    else:
        yield CheckResult("disk", "warning", f"{here} cannot be written", "name another --output")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = limit == resource.RLIM_INFINITY
    found = "no limit" if unlimited else str(limit)
    yield at_least("open files", found, unlimited or limit >= ENOUGH_FILES, "run `ulimit -n 4096` first")
