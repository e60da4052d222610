"""The processor cores that a process may use, and the number of processes that read videos on them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from everest.system.posix import host_memory, usable_cores
from everest.system.processes import local_processes

QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time per period, or max
JOBS: Final = "EVEREST_JOBS"  # set by a sweep for each of its jobs: how many run at once
# Our choice: a GPU uses 2,850 clips/s of a ViT-B, which about as many cores read.
MOST_READERS: Final = 48
SHORTEST: Final = 0.2  # seconds, our choice: the system counts in ticks of 0.01 s
CROWDED: Final = 0.75  # our choice: of the cores that this run leaves, used by others
READER_BYTES: Final = 2**29  # our choice: memory of such a process, its share of the batches included


def num_cores() -> int:
    """Returns how many cores this process may use; `num_trainers` processes share them."""
    cores = usable_cores()
    with suppress(OSError, ValueError):  # no container, or no limit
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def num_trainers() -> int:
    """Returns how many processes train on this machine: of all jobs of a sweep that run at once."""
    return local_processes() * int(os.environ.get(JOBS) or 1)


class BusyCores:
    """Measures how many cores the processes of this machine use, from its creation on."""

    def __init__(self) -> None:
        self._used, self._started = _processor_seconds(), time.monotonic()

    def measure(self) -> tuple[float, float]:
        """Return the mean numbers of cores of this run and of others, over at least SHORTEST seconds."""
        import psutil

        time.sleep(max(0.0, self._started + SHORTEST - time.monotonic()))
        seconds = time.monotonic() - self._started
        cores = {
            pid: (used - self._used[pid]) / seconds
            for pid, used in _processor_seconds().items()
            if pid in self._used
        }
        this = psutil.Process()
        launcher = this.parent() if local_processes() > 1 else None  # of all processes of this run
        run = {process.pid for process in (this, *(launcher or this).children(recursive=True))}
        own = sum(used for pid, used in cores.items() if pid in run)
        return own, sum(cores.values()) - own


def _processor_seconds() -> dict[int, float]:
    """The processor times of all visible processes by their ids."""
    import psutil  # here: `everest doctor` counts cores even if this package is broken

    processes = psutil.process_iter(["cpu_times"])  # None: it has ended, or belongs to another user
    times = {process.pid: process.info["cpu_times"] for process in processes}
    return {pid: used.user + used.system for pid, used in times.items() if used is not None}


def crowded_cores(own: float, others: float) -> str | None:
    """A warning if other processes use most of the cores; a step that shares them may be ten times slower.

    Args:
        own: cores that this run uses.
        others: cores that other processes use.
    """
    cores = num_cores()
    if others < CROWDED * max(cores - own, cores / 2):
        return None
    remedy = "" if "OMP_NUM_THREADS" in os.environ else ", or divide the cores by OMP_NUM_THREADS"
    return (
        f"other processes use {others:.1f} of the {cores} cores of this machine; runs that share cores may "
        f"be ten times slower than one after the other; wait{remedy}"
    )


def num_readers() -> int:
    """Returns how many processes read videos for each process that trains, if the recipe leaves it open."""
    memory = host_memory()  # what is free changes from run to run
    possible = min(num_cores(), memory // READER_BYTES)
    return max(1, min(possible // num_trainers(), MOST_READERS))
