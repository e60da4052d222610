"""The memory of this process and its limits: of the machine, and of control groups of Linux."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")  # of Linux: containers and jobs of Slurm with their limits
OWN_GROUPS: Final = Path("/proc/self/cgroup")
# Of a control group: the files with its limit and its use, and the parts of the use in memory.stat that the
# system frees when they are needed.
MEMORY_FILES: Final = ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
MEMORY_FILES_V1: Final = (
    *("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("total_inactive_file", "total_active_file"),
)


def peak_resident_bytes() -> int:
    """The largest memory that this process had."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset

    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def free_host_memory(*, with_swap: bool = False) -> int:
    """The bytes that this process can still use: of the machine, of its container and of its job of Slurm.

    Args:
        with_swap: of the machine, whose system ends processes only when its swap space is full, too.
    """
    import psutil  # here: `everest doctor` starts even if this package is broken

    free = min([psutil.virtual_memory().available, *(limit - used for limit, used in _memory_limits())])
    return max(0, free) + (psutil.swap_memory().free if with_swap else 0)


def host_memory() -> int:
    """The bytes that this process and all others of its container may use together."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """The limit and the use, in bytes, of each control group around this process that has a limit."""
    groups = OWN_GROUPS.read_text(errors="surrogateescape") if OWN_GROUPS.is_file() else ""
    for number, controllers, path in re.findall("^([0-9]+):(.*?):(.*)$", groups, re.MULTILINE):
        if number == "0":
            top, (limit, use, freed) = CONTROL_GROUPS, MEMORY_FILES
        elif "memory" in controllers.split(","):
            top, (limit, use, freed) = CONTROL_GROUPS / "memory", MEMORY_FILES_V1
        else:
            continue
        group = top / path.lstrip("/")  # where the container sees its own groups only, it is `top`
        for folder in (group, *group.parents):
            if most := _numbers(folder / limit):  # the group is visible here, and has a limit
                parts = _numbers(folder / "memory.stat")
                used = _numbers(folder / use).get("", 0) - sum(parts.get(name, 0) for name in freed)
                yield most[""], used


def _numbers(file: Path) -> dict[str, int]:
    """The numbers in a file of a control group by their names; by "" the number that is the whole file."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return {}
    return {name: int(number) for name, number in re.findall("^(?:(.+) )?([0-9]+)$", text, re.MULTILINE)}
