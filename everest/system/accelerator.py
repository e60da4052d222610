"""The Accelerator of a command: precision, process group, and the process state that a stage restores."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list

from everest.system.compute import Precision, Runtime, choose_precision
from everest.system.private_apis import accelerate_states, keep_compiler_limits, reset_accelerate
from everest.system.processes import TRAINER_KEPT_BYTES, adopt_slurm, is_launched, keep_freed_memory

T = TypeVar("T")

# Other processes wait in a collective while the main process evaluates a tokenizer, measures its targets or
# writes a checkpoint. NCCL gives up after 10 minutes by default, and gloo after 30. Our choice.
COLLECTIVE_TIMEOUT: Final = timedelta(hours=2)
# A finished process waits while other processes read their longest recordings. If one of them dies, the
# wait ends at once.
LONGEST_WAIT: Final = timedelta(days=30)


def make_accelerator(precision: str, *, cpu: bool) -> Accelerator:
    """Set up the process group, the precision and float32 products for a command or stage.

    On a CPU, the memory that a step frees is kept for the next step. Library calls that only compute use a
    `Runtime`, which leaves the process unchanged.

    Args:
        precision: see `choose_precision`.
        cpu: compute on the CPU even if there is a GPU.
    """
    uses_gpu = not cpu and torch.cuda.is_available()
    mixed_precision = choose_precision(precision, torch.device("cuda" if uses_gpu else "cpu"))
    torch.set_float32_matmul_precision("highest")
    if not uses_gpu:
        keep_freed_memory(TRAINER_KEPT_BYTES)
    adopt_slurm(os.environ)
    reset_accelerate(keep_processes=is_launched())
    # The new name of the option is not in older versions of torch, and Accelerate does not pass it.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return Accelerator(
        mixed_precision="no" if mixed_precision == "fp32" else mixed_precision,
        # Without a GPU, Accelerate would not join the processes of a launcher.
        cpu=cpu or (is_launched() and not torch.cuda.is_available()),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            # No static_graph: torch refuses it for steps of several micro-batches, and it only saves the
            # search for unused parameters, which is off.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )


def make_runtime(accelerator: Accelerator) -> Runtime:
    """Return the `Runtime` with which a command or a stage computes without training."""
    precision = accelerator.mixed_precision
    return Runtime(
        device=accelerator.device,
        precision=cast(Precision, "fp32" if precision == "no" else precision),
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


@atexit.register
def _close_processes() -> None:
    """Close the connections to the other processes: gloo may abort a process that exits with them open."""
    if dist.is_initialized():
        dist.destroy_process_group()


def decide_on_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Let the main process decide for all processes: the decision depends on the clock or on files."""
    (value,) = broadcast_object_list([decide() if accelerator.is_main_process else None])
    assert value is not None
    return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Processes:
    """The processes of a launcher that share the work of a command and exchange small objects only."""

    rank: int = 0
    num_processes: int = 1
    group: Any = None  # group of torch.distributed; None: this is the only process

    @property
    def is_main(self) -> bool:
        """Whether this process writes the output."""
        return self.rank == 0

    def decide(self, decide: Callable[[], T]) -> T:
        """Let the main process decide for all processes, by the files that it finds."""
        values = [decide() if self.is_main else None]
        if self.group is not None:
            dist.broadcast_object_list(values, group=self.group)
        (value,) = values
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Wait for all processes; return their values by rank in the main process, else an empty list."""
        if self.group is None:
            return [value]
        values: list[Any] | None = [None] * self.num_processes if self.is_main else None
        dist.gather_object(value, values, group=self.group)
        return values or []


ALONE: Final = Processes()


def join_processes(runtime: Runtime) -> Processes:
    """Return the processes of a command. Each process must call this function."""
    if runtime.num_processes == 1:
        return ALONE
    # A separate group, because waiting in the NCCL group of training needs a GPU.
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return Processes(rank=runtime.rank, num_processes=runtime.num_processes, group=group)


@contextmanager
def restore_process_state() -> Iterator[None]:
    """Restore the process state that a stage changes, at the end of the block, also after an error.

    The state is the random generators, the precision of float32 products, the number of threads, the start
    method of processes, warning filters, the environment, settings of torch's compiler, and the state that
    all Accelerators of a process share (else the caller's Accelerator would report the stage's precision and
    device). Not restored are the process group of several processes, glibc's limit for freed memory, and
    the OpenMP variables that scikit-learn sets for the life of a process (KMP_…).
    """

    def refill(mapping: Any, saved: dict[str, Any]) -> None:
        for key in [key for key in mapping if key not in saved and not key.startswith("KMP_")]:
            del mapping[key]
        mapping.update(saved)

    with ExitStack() as stack:
        for mapping in (os.environ, *accelerate_states()):
            stack.callback(refill, mapping, dict(mapping))
        stack.enter_context(keep_compiler_limits())
        start_method = multiprocessing.get_start_method(allow_none=True)  # None: not chosen yet
        stack.callback(multiprocessing.set_start_method, start_method, force=True)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        # torch has two settings of float32 products. The older setting, for all devices, cannot be read after
        # the newer setting, for each device, has been used. So the older setting is restored first.
        for backend in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)):
            if (value := getattr(backend, "fp32_precision", None)) is not None:
                stack.callback(setattr, backend, "fp32_precision", value)
        precision = "highest"  # the default
        with suppress(RuntimeError):
            precision = torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, precision)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(warnings.catch_warnings())
        yield


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
