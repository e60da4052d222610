"""What a process sets so that torch is fast on a CPU."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Final

import torch

# glibc's mallopt (malloc.h): its numbers of what can be set.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_PIECE: Final = 2**25  # bytes: larger pieces are handed back all the same, as glibc allows no more
OF_CLIPS: Final = 2**27  # bytes that a process which reads clips keeps
OF_STEPS: Final = 2**31 - 1  # and one that trains: as much as glibc allows


_stay_float32 = False  # the products of this process, as `use_wide_products` found


def use_wide_products() -> None:
    """Let torch compute float32 products by oneDNN, with the full width of an AMD processor's vectors.

    Unasked it takes MKL, which reaches less than half of that on an AMD EPYC, but is the faster one on an
    Intel Xeon (benchmarks/attention.py): there all stays as it was, and where there is a GPU, too, as one
    setting is for both. Allowed to lower the precision of products, torch takes oneDNN, which does lower it
    where a processor has units for that (AMX); then the permission is taken back.
    """
    global _stay_float32
    if torch.cuda.is_available() or not _made_by_amd():
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        _stay_float32 = _products_stay_float32()
    finally:
        if not _stay_float32:
            torch.set_float32_matmul_precision(before)


def has_wide_products() -> bool:
    """Whether `use_wide_products` found them. What a program sets by itself is not looked at."""
    return _stay_float32


def _made_by_amd(told_by: Path = Path("/proc/cpuinfo")) -> bool:
    return "AuthenticAMD" in (told_by.read_text() if told_by.is_file() else platform.processor())


def _products_stay_float32() -> bool:
    """A product of numbers that differ in their last bits only, which no lower precision has."""
    steps = torch.arange(256, dtype=torch.float32, device="cpu") * torch.finfo(torch.float32).eps
    fine, one = 1 + steps.repeat(256, 1), torch.eye(256, dtype=torch.float32, device="cpu")  # (256, 256)
    return torch.equal(fine @ one, fine)


def keep_freed_memory(most: int) -> None:
    """Let this process keep what a clip or a step took for the next one, which takes the same.

    Else glibc hands such sizes back at once, and a sixth of a clip's time, or up to a tenth of a step's, goes
    into new pages (measured on an AMD EPYC). Other allocators are left alone.

    Args:
        most: bytes, OF_CLIPS or OF_STEPS; each thread may keep as many.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _PIECE)
        mallopt(_TRIM_THRESHOLD, most)
