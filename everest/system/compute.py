"""Devices, precisions, fused functions, copies to the host, and the time and memory of a forward pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from statistics import median
from typing import Any, Concatenate, Final, Literal, NamedTuple, ParamSpec, TypeVar, cast, get_args
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, UntypedStorage, nn

from everest.errors import EnvironmentProblem, unknown_name
from everest.system.private_apis import FakeTensorMode, TorchDispatchMode, tree_leaves

P = ParamSpec("P")
T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]

PART_VALUES: Final = 2**21  # values of a clip of 16 x 224 x 224 pixels, which fit the cache of a CPU
BF16_CAPABILITY: Final = 8  # compute capability of Ampere; Volta and Turing have units for fp16 only
MAX_PASSES: Final = 30  # default: maximum number of timed passes
TIMED_SECONDS: Final = 3.0  # default: seconds of passes after which timing ends
FAR_FACTOR: Final = 4.0  # heuristic: multiple of the limit from which one pass is enough
BUSY: Final = 1.25  # heuristic: clock time / CPU time above which other programs slow the network down


class NetworkTime(NamedTuple):
    """The milliseconds that a model takes for one clip, on one thread of the CPU."""

    alone_ms: float  # CPU time of the thread in the fastest pass: other programs hardly change it
    clock_ms: float  # median clock time of the passes: longer if other programs use the CPU

    @property
    def warnings(self) -> list[str]:
        """Return a line of text if other programs use the CPU."""
        is_busy = self.clock_ms > BUSY * self.alone_ms
        return [f"other programs use the CPU, so a clip takes {self.clock_ms:.0f} ms now"] * is_busy


def time_calls(
    run: Callable[[], object],
    *,
    most: int | None = None,
    seconds: float = math.inf,
    enough: float = math.inf,
    device: torch.device | None = None,
) -> tuple[list[float], list[float]]:
    """Time calls one after another; return the CPU seconds of this thread and the clock seconds of each.

    Args:
        most: the maximum number of calls; None: no maximum.
        seconds: clock time of all calls after which none begins.
        enough: CPU time of one call after which none follows.
        device: whose work is awaited after each call.
    """
    cpu, clock = [], []
    while len(cpu) != most and sum(clock) < seconds:
        cpu_start, clock_start = time.thread_time(), time.perf_counter()
        run()
        if device is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)
        cpu.append(time.thread_time() - cpu_start)
        clock.append(time.perf_counter() - clock_start)
        if cpu[0] > enough:
            break
    return cpu, clock


def time_passes(run: Callable[[], object], *, limit: float = math.inf) -> NetworkTime:
    """Time a model on the calling thread; one pass is enough if it takes far longer than `limit` ms."""
    enough = FAR_FACTOR * limit / 1000
    alone, clock = time_calls(run, most=MAX_PASSES, seconds=TIMED_SECONDS, enough=enough)
    return NetworkTime(alone_ms=round(1000 * min(alone), 3), clock_ms=round(1000 * median(clock), 3))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one CPU thread in the block: small steps are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU with units for bfloat16; older GPUs only emulate it, slowly."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= BF16_CAPABILITY


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disables autocast, for example around code that decides which tokens are kept."""
    # meta has no autocast; torch.amp.is_autocast_available would break the graph in torch 2.11
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return a precision; `auto` is bf16 or else fp16 on a CUDA GPU, and fp32 on other devices."""
    is_cuda = device.type == "cuda"
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp16" if is_cuda else "fp32"
    if precision == "fp16" and not is_cuda:
        raise EnvironmentProblem("train.precision=fp16 needs a CUDA GPU; use bf16 or fp32 here")
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, ("auto", *get_args(Precision)))
    return cast(Precision, precision)


@dataclass(frozen=True)
class Runtime:
    """The device and precision of a model outside training; it leaves the process unchanged."""

    device: torch.device
    precision: Precision
    rank: int = 0  # rank of this process among the processes that share the work
    num_processes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """A context that computes in this precision, also inside another autocast context."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)

    def gather(self, rows: list[T]) -> list[T]:
        """Return the rows of all processes by rank. Each process must call this method."""
        if self.num_processes == 1:
            return rows
        parts: list[list[T]] = [[] for _ in range(self.num_processes)]
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]


_fused: dict[Callable[..., Any], Callable[..., Any]] = {}  # fusable function: the function that runs on a GPU


def fusable(function: Callable[Concatenate[Tensor, P], T]) -> Callable[Concatenate[Tensor, P], T]:
    """Let `fuse_functions` compile a function whose first argument is a tensor."""
    _fused[function] = function

    @wraps(function)
    def dispatch(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> T:
        is_fused = tensor.is_cuda and not torch.compiler.is_compiling()  # not part of a larger graph
        return (_fused[function] if is_fused else function)(tensor, *args, **kwargs)

    return dispatch


def fuse_functions() -> None:
    """Compile all fusable functions when they are next called with a tensor on a GPU, in this process.

    Each shape of the arguments gets a graph, as for the blocks of a model.
    """
    for function, current in _fused.items():
        if current is function:
            _fused[function] = torch.compile(function, dynamic=False)


def is_eager_on_cpu(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read without waiting and without breaking a graph.

    A subclass, such as a fake tensor, may have no values.
    """
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Compute `function(*tensors)`, where rows of the first dimension (B, ...) are independent.

    On a CPU the function gets a few rows at a time, so that intermediate values stay in the cache and memory
    is reused. Other devices and graphs, which fuse operations, get all rows at once.
    """
    first = tensors[0]
    if not is_eager_on_cpu(first):
        return function(*tensors)
    rows = max(1, PART_VALUES // first[0].numel())
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    results = [function(*part) for part in parts]
    return results[0] if len(results) == 1 else torch.cat(results)


class HostCopy:
    """Tensors on their way to the host; in pinned memory if they come from a GPU.

    Args:
        keep: also copy tensors that are on the host, so that later changes do not reach the copy.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, keep: bool = False) -> None:
        self._copies = {name: x.to("cpu", non_blocking=True, copy=keep) for name, x in tensors.items()}
        self._event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> dict[str, Tensor]:
        """Wait for the copies, and return them under the names of the tensors."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were made in its context; `peak` is the maximum.

    Earlier tensors, such as weights, are not counted. Neither are tensors computed only from them, such as
    copies in lower precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes = WeakKeyDictionary[UntypedStorage, int]()  # bytes of each live storage; 0: not counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            self._add(tensor, is_counted=False)
        is_counted = not inputs or any(self._sizes[x.untyped_storage()] for x in inputs)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, is_counted=is_counted)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return out

    def _add(self, tensor: Tensor, *, is_counted: bool) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._sizes:
            self._sizes[storage] = storage.nbytes() if is_counted else 0


def peak_bytes(model: nn.Module, run: Callable[[], object], *, bytes_per_value: int, with_grad: bool) -> int:
    """Return the peak bytes of live tensors in a forward pass, without the model's weights.

    Args:
        model: on the meta device; its weights become fake tensors.
        run: makes the inputs and calls the model; the tensors that it returns stay alive.
        bytes_per_value: 4: float32; 2: autocast, which keeps float32 where it needs it.
        with_grad: whether to keep the tensors that the backward pass needs.
    """
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with LiveBytes() as live, half, torch.set_grad_enabled(with_grad):
            _alive = run()
    return live.peak
