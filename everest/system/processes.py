"""The processes of a run, one per device: their ranks, and the cores and memory that each may use.

A run of several processes is the same command several times; each process reads its rank from the
environment variables of torch.distributed and Accelerate, which everest (everest.system.launch), torchrun,
accelerate or Slurm has set.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from everest.errors import EnvironmentProblem, shorten

LAUNCHER_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
CPU_QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")  # a container's microseconds per period, or max
JOBS_VARIABLE: Final = "EVEREST_JOBS"  # the number of runs that share the cores and memory
# Heuristic: about as many cores read the 2,850 clips/s that a GPU processes with a ViT-B.
MAX_READERS: Final = 48
READER_BYTES: Final = 2**29  # heuristic: memory of a reader, including its fraction of the batches
GROUPS_FOLDER: Final = Path("/sys/fs/cgroup")  # Linux control groups, version 2: containers, Slurm jobs
PROCESS_GROUPS_FILE: Final = Path("/proc/self/cgroup")
# Lines of memory.stat with memory that the system frees when needed.
FREEABLE_PATTERN: Final = "^(?:inactive_file|active_file|slab_reclaimable) ([0-9]+)$"
# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT: Final = 2**25  # bytes; glibc always returns larger blocks to the system
READER_KEPT_BYTES: Final = 2**27  # bytes that a reader process keeps
# Bytes that a training process keeps: the largest limit. Without a limit it would keep all memory.
TRAINER_KEPT_BYTES: Final = 2**31 - 1


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    # torch treats LOCAL_RANK=-1 as no rank.
    names = [name for name in LAUNCHER_VARIABLES if os.environ.get(name, "-1") != "-1"]
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(names):
        return False
    missing = [name for name in LAUNCHER_VARIABLES if name not in names]
    if missing:
        raise EnvironmentProblem(
            f"the environment has {', '.join(names)}, but not {', '.join(missing)}: a launcher such as "
            f"torchrun sets all of them; without one, unset {' '.join(names)}"
        )
    for name in (*LAUNCHER_VARIABLES[:-1], "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdecimal()):
            raise EnvironmentProblem(f"{name}={shorten(value)} in the environment is not a number; unset it")
    return True


def is_main() -> bool:
    """Whether this process is the one that writes files and messages."""
    return os.environ.get("RANK", "0") == "0"


def warn_on_main(text: str) -> None:
    """Show the user a line, in the main process only."""
    if is_main():
        logging.getLogger("everest").warning("%s", text)


@cache
def warn_on_main_once(text: str) -> None:
    """Call `warn_on_main` once per text in this process."""
    warn_on_main(text)


def num_local_processes() -> int:
    """The number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start_process(process: BaseProcess) -> None:
    """Start a process; a program that has chosen no start method may still choose one."""
    start_method = multiprocessing.get_start_method(allow_none=True)
    process.start()
    multiprocessing.set_start_method(start_method, force=True)


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Give the environment of a task of `srun` the variables that torch.distributed and Accelerate read."""
    # Variables of the step, not of the job: an sbatch script has the job's variables, but is one process.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or int(tasks) < 2 or not environment.keys() >= {"SLURM_PROCID", "SLURM_LOCALID"}:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    tasks_here = environment.get("SLURM_STEP_TASKS_PER_NODE", tasks)  # such as 8(x2)
    environment["LOCAL_WORLD_SIZE"] = tasks_here.split("(")[0].split(",")[0]
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")  # such as node[03-05,9]: node03 is the first
    first = "".join(re.findall(r"^([^\[,]*)(?:\[(\d+))?", nodes)[0])
    environment.setdefault("MASTER_ADDR", first)
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))


def num_cores() -> int:
    """The number of cores that the processes of a run on this machine may use together."""
    # macOS assigns no cores to a process.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # not in a container, or without a limit
        quota, period = CPU_QUOTA_FILE.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def num_readers() -> int:
    """The number of reader processes per training process, if the recipe does not set it."""
    num_trainers = num_local_processes() * int(os.environ.get(JOBS_VARIABLE) or 1)  # on this machine
    num_fitting = host_memory() // READER_BYTES // num_trainers  # free memory would change from run to run
    cores = num_cores() // num_trainers
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # a task does not share its cores
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK", cores))
    return max(1, min(cores, num_fitting, MAX_READERS))


def free_host_memory(*, with_swap: bool = False) -> int:
    """The bytes that this process can still use, within the limits of its container and Slurm job.

    Args:
        with_swap: add the free swap space; the system ends processes only when swap is full as well.
    """
    import psutil  # imported here: `everest doctor` starts even if psutil is broken

    free = min([psutil.virtual_memory().available, *(limit - used for limit, used in _memory_limits())])
    return max(0, free) + (psutil.swap_memory().free if with_swap else 0)


def host_memory() -> int:
    """The bytes that all processes of this container may use together."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit and usage in bytes of each control group of this process that has a limit."""
    groups = PROCESS_GROUPS_FILE.read_text(errors="surrogateescape") if PROCESS_GROUPS_FILE.is_file() else ""
    match = re.search("^0::/?(.*)$", groups, re.MULTILINE)
    if match is None:
        return
    group = GROUPS_FOLDER / match[1]  # if the container sees only its own groups, the top group
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # the group is not visible here, or its limit is "max"
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            freeable = re.findall(FREEABLE_PATTERN, (folder / "memory.stat").read_text(), re.MULTILINE)
            yield limit, used - sum(map(int, freeable))


def keep_freed_memory(max_bytes: int) -> None:
    """Let this process keep the freed memory of a clip or step for the next, which needs the same amount.

    By default glibc returns blocks of this size to the system at once. Getting new pages takes a sixth of the
    time of a clip (AMD EPYC) and 2 to 7 % of a step (Intel Xeon; see benchmarks/performance.md). Other
    allocators are left unchanged.

    Args:
        max_bytes: bytes that each thread may keep, READER_KEPT_BYTES or TRAINER_KEPT_BYTES.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, max_bytes)
