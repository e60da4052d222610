"""The processor cores that a process may use, and the number of processes that read videos on them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from everest.system.posix import host_memory
from everest.system.processes import local_processes

QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time per period, or max
JOBS: Final = "EVEREST_JOBS"  # set by a sweep for each of its jobs: how many run at once
# Our choice: a GPU uses 2,850 clips/s of a ViT-B, which about as many cores read.
MOST_READERS: Final = 48
READER_BYTES: Final = 2**29  # our choice: memory of such a process, its share of the batches included


def num_cores() -> int:
    """Returns how many cores this process may use; `num_trainers` processes share them."""
    # macOS assigns no cores to a process.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or no limit
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def num_trainers() -> int:
    """Returns how many processes train on this machine: of all jobs of a sweep that run at once."""
    return local_processes() * int(os.environ.get(JOBS) or 1)


def num_readers() -> int:
    """Returns how many processes read videos for each process that trains, if the recipe leaves it open."""
    memory = host_memory()  # what is free changes from run to run
    possible = min(num_cores(), memory // READER_BYTES)
    return max(1, min(possible // num_trainers(), MOST_READERS))
