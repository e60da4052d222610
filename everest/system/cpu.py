"""Process settings that make torch fast on a CPU."""

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
_LARGEST_PIECE: Final = 2**25  # bytes, glibc's maximum: larger pieces are always returned to the system
READER_KEEPS: Final = 2**27  # bytes that a process which reads clips keeps
# Bytes that a training process keeps: the largest limit. Without a limit it would keep all memory forever.
TRAINER_KEEPS: Final = 2**31 - 1

_onednn_matmul = False  # whether `use_onednn_matmul` enabled oneDNN in this process


def use_onednn_matmul() -> None:
    """Let torch compute float32 products with oneDNN on AMD processors, where that is faster.

    By default torch uses MKL. On an AMD EPYC, MKL reaches less than half of oneDNN's speed; on an Intel Xeon
    it is faster than oneDNN (benchmarks/attention.py), so nothing changes there. Nothing changes on a machine
    with a GPU either, because one setting controls both devices. torch uses oneDNN when it may lower the
    precision of products. oneDNN does lower it on processors with units for that (AMX); the permission is
    withdrawn there.
    """
    global _onednn_matmul
    if torch.cuda.is_available() or not _is_amd():
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        _onednn_matmul = matmul_stays_float32()
    finally:
        if not _onednn_matmul:
            torch.set_float32_matmul_precision(before)


def has_onednn_matmul() -> bool:
    """Whether `use_onednn_matmul` enabled oneDNN. A program's own settings are not considered."""
    return _onednn_matmul


def _is_amd(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.is_file() else platform.processor())


def matmul_stays_float32() -> bool:
    """Whether a product keeps numbers that differ only in their last bits, which lower precisions round."""
    steps = torch.arange(256, dtype=torch.float32, device="cpu") * torch.finfo(torch.float32).eps
    fine = 1 + steps.repeat(256, 1)  # (256, 256)
    return torch.equal(fine @ torch.eye(256, dtype=torch.float32, device="cpu"), fine)


def keep_freed_memory(most: int) -> None:
    """Let this process keep the memory of a clip or a step for the next one, which needs the same sizes.

    By default glibc returns such sizes at once, and new pages take a sixth of a clip's time (measured on an
    AMD EPYC) and 2 to 7 % of a step's (on an Intel Xeon, where nothing else is set: docs/performance.md, on
    equal terms). Other allocators are not changed.

    Args:
        most: bytes, READER_KEEPS or TRAINER_KEEPS; each thread may keep this many.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE)
        mallopt(_TRIM_THRESHOLD, most)
