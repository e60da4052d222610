"""Checks of the limits of the operating system: shared memory, disk, open files."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from everest.data.ring import REMEDY, free_shared_memory
from everest.data.workers import divide
from everest.profiling.check_result import GIB, CheckResult, at_least
from everest.system.cores import num_readers

USUAL_CLIP: Final = 3 * 16 * 224 * 224  # bytes; most recipes
USUAL_PASS: Final = 16  # clips; our choice: of a ViT-B on a CPU
LARGE_PASS: Final = 512  # clips; our choice: of a ViT-B on a GPU of 140 GB
ENOUGH_DISK: Final = 5 * GIB  # our choice: states of a ViT-B run, twice
ENOUGH_FILES: Final = 1024  # our choice: connections to workers, shards and caches


def check_system() -> Iterator[CheckResult]:
    """Check shared memory, the disk of the working folder, and the limit of open files."""
    shared = free_shared_memory()
    if shared is not None:
        needed = usual_shared_bytes()
        found = f"{shared / GIB:.2f} GiB free; a run with a usual recipe uses {needed / GIB:.2f} GiB"
        yield at_least("shared memory", found, shared >= needed, REMEDY)
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


def usual_shared_bytes() -> int:
    """Returns the shared memory for the clips of a run on all GPUs, or on the CPU if there is none."""
    torch = sys.modules.get("torch")  # imported and checked before, if it can be
    gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    clips = LARGE_PASS if gpus else USUAL_PASS
    workers = max(1, num_readers() // max(1, gpus))
    slots = divide(batch=clips, views=1, workers=workers, batches=sys.maxsize).slots
    return max(1, gpus) * slots * clips * USUAL_CLIP
