"""The services of POSIX systems that everest uses, and what takes their place on Windows.

Signals between processes, groups of processes, closed terminals, memory and its limits, and files that are
flushed and replaced. No other file depends on the system.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

try:
    import resource
    import termios
except ImportError:  # Windows
    resource = termios = None

IS_POSIX: Final = hasattr(os, "fork")
# Ctrl-C, kill, Slurm's warning before the time limit, a closed terminal; of Windows: Ctrl-Break.
STOP_SIGNALS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)
HANGUP: Final = getattr(signal, "SIGHUP", None)  # a closed terminal
REPLACE_SECONDS: Final = 2.0  # our choice: how long another program may hold a file that is replaced
IN_USE: Final = (5, 32)  # Windows: access denied, sharing violation
CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")  # of Linux: containers and jobs of Slurm with their limits
OWN_GROUPS: Final = Path("/proc/self/cgroup")
# Of a control group: the files with its limit and its use, and the parts of the use in memory.stat that the
# system frees when they are needed.
MEMORY_FILES: Final = ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
MEMORY_FILES_V1: Final = (
    *("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("total_inactive_file", "total_active_file"),
)


def group_options() -> dict[str, Any]:
    """Options of subprocess.Popen: Ctrl-C reaches this process only, which forwards it once."""
    if IS_POSIX:
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def forward_signal(process: subprocess.Popen[Any], number: int) -> None:
    """Send a stop signal to a process that was started with `group_options`.

    Windows has only one that another process can receive: Ctrl-Break.
    """
    process.send_signal(number if IS_POSIX else getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def stop_this_process() -> None:
    """Let the main thread of this process receive SIGTERM; another thread may call this."""
    if IS_POSIX:
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # os.kill would end it at once
        signal.raise_signal(signal.SIGTERM)


def is_orphan(parent: int) -> bool:
    """Whether the process `parent`, which has started this one, is gone.

    Windows gives an orphan no other parent. A launcher of a virtual environment may be between the two.
    """
    if IS_POSIX:
        return os.getppid() != parent
    from psutil import pid_exists

    return not pid_exists(parent)


def signal_name(code: int | None) -> str | None:
    """The name of the signal by which a process ended, from its exit code; None if it ended otherwise."""
    return signal.Signals(-code).name if code is not None and code < 0 else None


def is_closed_terminal(descriptor: int) -> bool:
    """Whether a stream belongs to a terminal that has been closed. Windows ends the processes of one."""
    if termios is None:
        return False
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:  # ENOTTY of anything but a terminal
        return error.args[0] == errno.EIO
    return False


def peak_resident_bytes() -> int:
    """The largest memory that this process had."""
    if resource is None:
        from psutil import Process

        windows: Any = Process().memory_info()
        return windows.peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def free_host_memory(*, with_swap: bool = False) -> int:
    """The bytes that this process can still use: of the machine, of its container and of its job of Slurm.

    Args:
        with_swap: of the machine, whose system ends processes only when its swap space is full, too.
    """
    import psutil  # here: `everest doctor` starts even if this package is broken

    limits = [limit - used for limit, used in _memory_limits()]
    swap = psutil.swap_memory().free if with_swap else 0
    return max(0, min([psutil.virtual_memory().available, *limits])) + swap


def host_memory() -> int:
    """The bytes that this process and all others of its container may use together."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """The limit and the use, in bytes, of each control group around this process that has a limit."""
    for line in _lines(OWN_GROUPS):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, (limit, used, freed) = CONTROL_GROUPS, MEMORY_FILES
        elif "memory" in controllers.split(","):
            top, (limit, used, freed) = CONTROL_GROUPS / "memory", MEMORY_FILES_V1
        else:
            continue
        own = top / path.lstrip("/")  # where the container sees its own groups only, it is `top`
        for group in (own, *own.parents[: len(own.parts) - len(top.parts)]):
            found = _numbers(f"limit {line}" for line in _lines(group / limit))
            if not found:  # the group is not visible here, or has no limit
                continue
            use = sum(_numbers(f"use {line}" for line in _lines(group / used)).values())
            parts = _numbers(_lines(group / "memory.stat"))
            yield found["limit"], use - sum(parts.get(name, 0) for name in freed)


def _lines(file: Path) -> list[str]:
    """The lines of a file of the system; none if it cannot be read."""
    try:
        return file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _numbers(lines: Iterable[str]) -> dict[str, int]:
    """The numbers of lines that are a name and a number; other lines, such as "max", are left out."""
    found = (line.split() for line in lines)
    return {words[0]: int(words[1]) for words in found if len(words) == 2 and words[1].isdecimal()}


def most_open_files() -> float | None:
    """The limit of open files of this process, inf for none; None on a system without such limits."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def usable_cores() -> int:
    """The cores that this process may use; on a system that assigns none all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flush(path: Path) -> None:
    """Write a file, or the entries of a folder, through to the disk."""
    if not IS_POSIX and path.is_dir():  # cannot be opened; its entries are journaled
        return
    descriptor = os.open(path, os.O_RDONLY if IS_POSIX else os.O_RDWR)  # only a writer can flush
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which may exist.

    Windows refuses this while a program has the target open; a virus scanner or a reader needs a moment.

    Raises:
        OSError: the disk refuses it, or the target stays open.
    """
    deadline = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            source.replace(target)
        except PermissionError:
            if IS_POSIX or time.monotonic() >= deadline:
                raise
            time.sleep(REPLACE_SECONDS / 20)
        else:
            return


def is_in_use(error: OSError) -> bool:
    """Whether Windows refused an operation because a program has the file open."""
    return getattr(error, "winerror", None) in IN_USE
