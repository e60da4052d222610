"""How devices compute: precision, CPU settings, and copies to the host."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

FIRST_WITH_BF16: Final = 8  # compute capability: Ampere; Volta and Turing have units for fp16 only


def computes_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU with units for bfloat16; older ones only emulate it, and slowly."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= FIRST_WITH_BF16


CPUINFO: Final = Path("/proc/cpuinfo")
# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT: Final = 2**25  # bytes, glibc's limit: larger blocks are always returned to the system
READER_KEPT_BYTES: Final = 2**27  # bytes that a process which reads clips keeps
# Bytes that a process which trains keeps: the largest limit. Without a limit it would keep all memory.
TRAINER_KEPT_BYTES: Final = 2**31 - 1


def configure_cpu() -> None:
    """Set up this process to compute on a CPU: faster matrix products, and freed memory is kept.

    By default torch computes float32 products with MKL, which reaches less than half of oneDNN's speed on an
    AMD EPYC, but more than oneDNN's speed on an Intel Xeon (benchmarks/performance.md). On AMD processors
    `torch.set_float32_matmul_precision("medium")` is therefore set, which makes torch choose oneDNN. That
    setting also permits a lower precision, which oneDNN uses on processors with units for it (AMX): if a
    product shows this, the setting is restored. The default also remains on other processors, and if there
    is a GPU, because one setting is valid for both devices.
    """
    processor = CPUINFO.read_text() if CPUINFO.is_file() else platform.processor()
    if "AuthenticAMD" in processor and not torch.cuda.is_available():
        default = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        # Numbers that differ in their last bits only.
        steps = torch.arange(256, dtype=torch.float32, device="cpu") * torch.finfo(torch.float32).eps
        fine, identity = 1 + steps.repeat(256, 1), torch.eye(256, dtype=torch.float32, device="cpu")
        if not torch.equal(fine @ identity, fine):
            torch.set_float32_matmul_precision(default)
    keep_freed_memory(TRAINER_KEPT_BYTES)


def keep_freed_memory(limit: int) -> None:
    """Let this process keep the memory of a clip or a step for the next one, which needs the same amount.

    By default glibc returns blocks of this size to the system at once. Getting new pages takes a sixth of the
    time of a clip (measured on an AMD EPYC) and 2 to 7 % of a step (on an Intel Xeon, where nothing else is
    set: benchmarks/performance.md, on equal terms). Other allocators are left unchanged.

    Args:
        limit: bytes, READER_KEPT_BYTES or TRAINER_KEPT_BYTES; each thread may keep that many.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, limit)


class HostCopy:
    """Tensors on their way to the host; in pinned memory if they come from a GPU.

    Args:
        keep: copy tensors of the host, too, so that later changes do not reach the copy.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, keep: bool = False) -> None:
        self._copies = {
            name: tensor.to("cpu", non_blocking=True, copy=keep) for name, tensor in tensors.items()
        }
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, Tensor]:
        """Wait for the copies, and return them under the names of the tensors."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
