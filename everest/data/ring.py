"""The memory that a loader hands batches over in: a ring of slots, one batch each, all in one block.

R slots, B samples of the largest batch. Worker processes write into the slots, and the process that trains
uses them as they are: no frame is copied in between. For a GPU, the block is pinned once. The block is shared
memory, of which a container of Docker has 64 MB.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from everest.errors import EnvironmentProblem

FOLDER: Final = Path("/dev/shm")
REMEDY: Final = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"


def free_shared_memory() -> int | None:
    """The free bytes; None on a system without such a folder."""
    return shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else None


def no_shared_memory(*, needed: int | None = None) -> EnvironmentProblem:
    """The error for batches that do not fit; `needed` are their bytes, if they are known."""
    megabytes = f"{(free_shared_memory() or 0) / 1e6:.0f} MB of {FOLDER} are free"
    if needed is not None:
        megabytes = f"the batches of the workers need {needed / 1e6:.0f} MB, {megabytes}"
    return EnvironmentProblem(f"too little shared memory ({megabytes}); {REMEDY}")


def require_shared_memory(needed: int) -> None:
    """Raise EnvironmentProblem if fewer than `needed` bytes are free."""
    free = free_shared_memory()
    if free is not None and needed > free:
        raise no_shared_memory(needed=needed)


ALIGNMENT: Final = 64  # bytes; a cache line, and more than any number needs
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # of each tensor of a sample: shape and type


def ring_bytes(layout: Layout, *, slots: int, batch: int) -> int:
    """Returns the size of a ring in bytes."""
    return sum(_field_bytes(layout, slots * batch).values())


class Ring:
    """R slots of B samples each.

    Args:
        shared: for other processes, in shared memory.
    """

    def __init__(self, layout: Layout, *, slots: int, batch: int, shared: bool) -> None:
        size = ring_bytes(layout, slots=slots, batch=batch)
        if shared:
            require_shared_memory(size)
        self.memory = torch.empty(size, dtype=torch.uint8)
        try:
            if shared:
                self.memory.share_memory_()
        except RuntimeError as error:  # torch's errors for a full /dev/shm and for `ulimit -f`
            if "File too large" in str(error):
                raise EnvironmentProblem(f"{error}: raise `ulimit -f`, or set train.workers=0") from error
            raise no_shared_memory(needed=self.memory.numel()) from error
        self._tensors: dict[str, Tensor] = {}  # (R, B, …) each
        self._is_pinned = False
        start = 0
        for name, size in _field_bytes(layout, slots * batch).items():
            shape, kind = layout[name]
            used = slots * batch * math.prod(shape) * kind.itemsize
            tensor = self.memory[start : start + used].view(kind)
            self._tensors[name] = tensor.view(slots, batch, *shape)
            start += size

    def batch(self, slot: int, samples: int) -> dict[str, Tensor]:
        """Returns the (samples, …) tensors of a slot, without a copy."""
        return {name: tensor[slot, :samples] for name, tensor in self._tensors.items()}

    def pin(self) -> None:
        """Pin the memory, so that copies to a GPU need no further copy and can be asynchronous."""
        runtime: Any = torch.cuda.cudart()
        code = int(runtime.cudaHostRegister(self.memory.data_ptr(), self.memory.numel(), 0))
        if code:
            raise EnvironmentProblem(
                f"CUDA cannot pin the {self.memory.numel() / 1e6:.0f} MB of the loader's batches "
                f"(error {code}); raise `ulimit -l`, or lower train.micro_batch or train.workers"
            )
        self._is_pinned = True

    def unpin(self) -> None:
        """Undo `pin`; no copy may be under way."""
        if self._is_pinned:
            self._is_pinned = False
            runtime: Any = torch.cuda.cudart()
            runtime.cudaHostUnregister(self.memory.data_ptr())


def _field_bytes(layout: Layout, samples: int) -> dict[str, int]:
    """The bytes of each tensor of a ring, rounded up."""
    sizes = {name: samples * math.prod(shape) * kind.itemsize for name, (shape, kind) in layout.items()}
    return {name: math.ceil(size / ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}
