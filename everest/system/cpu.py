"""Settings of a process that make torch fast on a CPU: float32 matrix products, and glibc's memory."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Final

import torch

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT: Final = 2**25  # bytes, glibc's limit: larger blocks are always returned to the system
READER_KEEPS: Final = 2**27  # bytes that a process which reads clips keeps
# Bytes that a process which trains keeps: the largest limit. Without a limit it would keep all memory.
TRAINER_KEEPS: Final = 2**31 - 1


def configure_cpu() -> None:
    """Set up this process to compute on a CPU: faster matrix products, and freed memory is kept.

    By default torch computes float32 products with MKL, which reaches less than half of oneDNN's speed on an
    AMD EPYC, but more than oneDNN's speed on an Intel Xeon (benchmarks/products.py). On AMD processors
    `torch.set_float32_matmul_precision("medium")` is therefore set, which makes torch choose oneDNN. That
    setting also permits a lower precision, which oneDNN uses on processors with units for it (AMX): if a
    product shows this, the setting is restored. The default also remains on other processors, and if there
    is a GPU, because one setting is valid for both devices.
    """
    if _made_by_amd() and not torch.cuda.is_available():
        default = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        if not matmul_stays_float32():
            torch.set_float32_matmul_precision(default)
    keep_freed_memory(TRAINER_KEEPS)


def _made_by_amd(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.is_file() else platform.processor())


def matmul_stays_float32() -> bool:
    """Whether a product preserves float32 numbers that differ in their last bits only."""
    steps = torch.arange(256, dtype=torch.float32, device="cpu") * torch.finfo(torch.float32).eps
    fine, identity = 1 + steps.repeat(256, 1), torch.eye(256, dtype=torch.float32, device="cpu")  # (256, 256)
    return torch.equal(fine @ identity, fine)


def keep_freed_memory(limit: int) -> None:
    """Let this process keep the memory of a clip or a step for the next one, which needs the same amount.

    By default glibc returns blocks of this size to the system at once. Getting new pages takes a sixth of the
    time of a clip (measured on an AMD EPYC) and 2 to 7 % of a step (on an Intel Xeon, where nothing else is
    set: docs/performance.md, on equal terms). Other allocators are left unchanged.

    Args:
        limit: bytes, READER_KEEPS or TRAINER_KEEPS; each thread may keep that many.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, limit)
