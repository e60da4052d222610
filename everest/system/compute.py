"""How devices compute: precision, fused functions, parts that fit a cache, CPU settings, host copies, and
the bytes that are alive in a pass, measured without numbers."""

from __future__ import annotations

import ctypes
import platform
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FIRST_WITH_BF16: Final = 8  # compute capability: Ampere; Volta and Turing have units for fp16 only


def computes_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU with units for bfloat16; older ones only emulate it, and slowly."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= FIRST_WITH_BF16


P = ParamSpec("P")
R = TypeVar("R")

_fused: dict[Callable[..., Any], Callable[..., Any]] = {}  # what runs on a GPU for each fusable function


def fusable(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Let `fuse_functions` compile a function whose first argument is a tensor."""
    _fused[function] = function

    @wraps(function)
    def chosen(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        is_alone = tensor.is_cuda and not torch.compiler.is_compiling()  # not part of a larger graph
        return (_fused[function] if is_alone else function)(tensor, *args, **kwargs)

    return chosen


def fuse_functions() -> None:
    """Compile all fusable functions when they are next called with a tensor on a GPU, in this process.

    There is a graph for each shape of the arguments, as for the blocks of a model.
    """
    for function, current in _fused.items():
        if current is function:
            _fused[function] = torch.compile(function, dynamic=False)


CPUINFO: Final = Path("/proc/cpuinfo")
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
    keep_freed_memory(TRAINER_KEEPS)


def keep_freed_memory(limit: int) -> None:
    """Let this process keep the memory of a clip or a step for the next one, which needs the same amount.

    By default glibc returns blocks of this size to the system at once. Getting new pages takes a sixth of the
    time of a clip (measured on an AMD EPYC) and 2 to 7 % of a step (on an Intel Xeon, where nothing else is
    set: benchmarks/performance.md, on equal terms). Other allocators are left unchanged.

    Args:
        limit: bytes, READER_KEEPS or TRAINER_KEEPS; each thread may keep that many.
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


PART: Final = 2**21  # values: one clip of 16 x 224 x 224 pixels, whose floats stay in the cache of a CPU


def is_eager_on_cpu(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without a wait and without a break in a graph.

    A subclass may have no values, as a fake tensor.
    """
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, which treats each row of the first dimension (B, ...) on its own.

    On a CPU it gets few rows at a time, so that what it writes in between stays in the cache, and its memory
    is not new for each operation. Other devices and graphs, which fuse operations, get all rows at once.
    """
    first = tensors[0]
    if not is_eager_on_cpu(first):
        return function(*tensors)
    rows = max(1, PART // first[0].numel())
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    results = [function(*part) for part in parts]
    return results[0] if len(results) == 1 else torch.cat(results)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in its context: `most` of those alive at the same time.

    Those from before, such as weights, are not counted, nor is what is computed from them alone, such as
    copies of lower precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, int] = {}  # of the storages alive now; 0: not counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            self._add(tensor, counts=False)
        counts = not inputs or any(self._sizes[x.untyped_storage()._cdata] for x in inputs)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, counts=counts)
        self.most = max(self.most, sum(self._sizes.values()))
        return out

    def _add(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes() if counts else 0
            weakref.finalize(storage, self._sizes.pop, storage._cdata)


def peak_bytes(model: nn.Module, run: Callable[[], object], *, bytes_per_value: int, trains: bool) -> int:
    """The most bytes that are alive in a forward pass, without the weights of the model.

    Args:
        model: on the meta device; its weights become tensors without numbers.
        run: makes its inputs; the tensors that it returns are alive until the end.
        bytes_per_value: 4: float32; 2: autocast, which keeps float32 where it needs it.
        trains: what the backward pass needs is kept.
    """
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with LiveBytes() as live, half, torch.set_grad_enabled(trains):
            _alive = run()
    return live.most
