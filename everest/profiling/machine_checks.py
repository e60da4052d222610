"""The result of a check of a machine, and the checks of the operating system: memory, disk, open files."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from everest.system.cores import num_readers
from everest.system.text import counted

GIB: Final = 2**30
USUAL_CLIP: Final = 3 * 16 * 224 * 224  # bytes; most recipes
USUAL_PASS: Final = 16  # clips; our choice: of a ViT-B on a CPU
LARGE_PASS: Final = 512  # clips; our choice: of a ViT-B on a GPU of 140 GB
ENOUGH_DISK: Final = 5 * GIB  # our choice: states of a ViT-B run, twice
ENOUGH_FILES: Final = 1024  # our choice: connections to workers, shards and caches
State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        state: absent: optional and not there. warning: works, but problems are likely. broken: needed.
        fix: the remedy; None if the check passed.
    """

    name: str
    state: State
    found: str
    fix: str | None = None


def verdict(results: Sequence[CheckResult]) -> str:
    """The results of all checks in a sentence: whether everest works, on which device, and where to start."""
    broken = [result.name for result in results if result.state == "broken"]
    warned = [result.name for result in results if result.state == "warning"]
    if broken:
        return f"everest does not work on this machine: fix {', '.join(broken)} first."
    gpus = sum(result.name.startswith("GPU ") and result.state == "ok" for result in results)
    if gpus:
        device = f"on {counted(gpus, 'GPU')}"
    elif any(result.name == "MPS" and result.state == "ok" for result in results):
        device = "on the GPU of this Mac, by --gpus mps"
    else:
        device = "on the CPU: begin with `everest recipes suggest VIDEOS --output my.yaml`"
    sentence = f"everest works on this machine, {device}"
    if not warned:
        return f"{sentence}."
    return f"{sentence}; {counted(len(warned), 'warning')}: {', '.join(warned)}."


def at_least(name: str, found: str, enough: bool, fix: str) -> CheckResult:
    """A result that is a warning with its fix unless there is `enough` of it."""
    return CheckResult(name, "ok", found) if enough else CheckResult(name, "warning", found, fix)


def first_line(error: Exception | Warning | str) -> str:
    """The first line of an error's message, which may be pages long."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def check_system() -> Iterator[CheckResult]:
    """Check the system, shared memory, the disk of the working folder, and the limit of open files."""
    yield CheckResult("system", "ok", platform.platform(terse=True))
    with suppress(Exception):  # of a broken torch, which has a check of its own
        yield from _check_shared_memory()
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if os.access(here, os.W_OK):
        fix = "free some space, or name another --output"
        yield at_least("disk", f"{free / GIB:.1f} GiB free at {here}", free >= ENOUGH_DISK, fix)
    else:
        yield CheckResult("disk", "warning", f"{here} cannot be written", "name another --output")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    is_unlimited = limit == resource.RLIM_INFINITY
    found = "no limit" if is_unlimited else str(limit)
    enough = is_unlimited or limit >= ENOUGH_FILES
    yield at_least("open files", found, enough, "run `ulimit -n 4096` first")


def _check_shared_memory() -> Iterator[CheckResult]:
    """Check the room for the clips of a run on all GPUs, or on the CPU if there is none."""
    import torch

    from everest.data.ring import REMEDY, free_shared_memory
    from everest.data.workers import divide

    free = free_shared_memory()
    if free is None:
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    clips = LARGE_PASS if gpus else USUAL_PASS
    workers = max(1, num_readers() // max(1, gpus))
    slots = divide(batch=clips, views=1, workers=workers, batches=sys.maxsize).slots
    needed = max(1, gpus) * slots * clips * USUAL_CLIP
    found = f"{free / GIB:.2f} GiB free; a run with a usual recipe uses {needed / GIB:.2f} GiB"
    yield at_least("shared memory", found, free >= needed, REMEDY)
