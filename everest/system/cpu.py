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
READER_KEEPS: Final = 2**27  # bytes that a process which reads clips keeps
TRAINER_KEEPS: Final = (
    2**31 - 1
)  # and one that trains: the largest bound; without any it would keep all for ever

_onednn_matmul = False  # whether the products of this process are oneDNN's, as `use_onednn_matmul` found


def use_onednn_matmul() -> None:
    """Let torch compute float32 products by oneDNN where that is faster: on AMD processors.

    Unasked torch takes MKL, which reaches less than half of oneDNN's speed on an AMD EPYC, but more than that
    on an Intel Xeon (benchmarks/attention.py): there all stays as it was, and where there is a GPU, too, as
    one setting is for both. Allowed to lower the precision of products, torch takes oneDNN, which does lower
    it where a processor has units for that (AMX); then the permission is taken back.
    """
    global _onednn_matmul
    if torch.cuda.is_available() or not _made_by_amd():
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        _onednn_matmul = matmul_stays_float32()
    finally:
        if not _onednn_matmul:
            torch.set_float32_matmul_precision(before)


def has_onednn_matmul() -> bool:
    """Whether `use_onednn_matmul` has set it. What a program sets by itself is not looked at."""
    return _onednn_matmul


def _made_by_amd(told_by: Path = Path("/proc/cpuinfo")) -> bool:
    return "AuthenticAMD" in (told_by.read_text() if told_by.is_file() else platform.processor())


def matmul_stays_float32() -> bool:
    """Whether a product keeps numbers that differ in their last bits only, which no lower precision has."""
    steps = torch.arange(256, dtype=torch.float32, device="cpu") * torch.finfo(torch.float32).eps
    fine, one = 1 + steps.repeat(256, 1), torch.eye(256, dtype=torch.float32, device="cpu")  # (256, 256)
    return torch.equal(fine @ one, fine)


def keep_freed_memory(most: int) -> None:
    """Let this process keep what a clip or a step took for the next one, which takes the same.

    Else glibc hands such sizes back at once, and new pages take a sixth of a clip's time (measured on an AMD
    EPYC) and 2 to 7 % of a step's (on an Intel Xeon, where nothing else is set: docs/performance.md, on equal
    terms). Other allocators are left alone.

    Args:
        most: bytes, READER_KEEPS or TRAINER_KEEPS; each thread may keep as many.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _PIECE)
        mallopt(_TRIM_THRESHOLD, most)
