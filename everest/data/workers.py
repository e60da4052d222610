"""Worker processes that run tasks, and the shared memory for their large results.

Results are taken in any order, usually that of the tasks. Each worker has its own connection. A worker that
is killed closes it, which ends the wait for a result at once, even if the worker was killed while it wrote
one. Results must be small: frames go into a ring of slots, one batch each, all in one block. Workers write
into the slots, and the process that trains uses them in place: no frame is copied in between. For a GPU, the
block is pinned once. By default, a Docker container has 64 MB of shared memory.

R slots, B samples of the largest batch.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

from everest.errors import EnvironmentProblem, UserError
from everest.system.processes import READER_KEPT_BYTES, keep_freed_memory, start_process
from everest.system.signals import STOP_SIGNALS, signal_name

KILL_SECONDS: Final = 5.0  # wait for a killed process; milliseconds, unless the kernel is out of memory
ORPHAN_SECONDS: Final = 5.0  # heuristic: how long a worker without a task may outlive a killed program

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerCrash(EnvironmentProblem):
    """A worker crashed, for example in a decoder; `task_ids` has the number of its task, if it had one."""

    def __init__(self, message: str, task_ids: list[int]) -> None:
        super().__init__(message)
        self.task_ids = task_ids


class Workers(Generic[Task, Result]):
    """Processes that call `work`, each with up to `max_ahead` tasks; without processes, `take` calls it."""

    def __init__(self, work: Callable[[Task], Result], *, num_workers: int, max_ahead: int) -> None:
        self._work = work
        self._max_ahead = max_ahead
        self._tasks: dict[int, Task] = {}  # without processes: tasks that `take` will run, by number
        self._results: dict[int, Result | Exception] = {}  # results not yet taken, by task number
        self._processes: dict[Connection, BaseProcess] = {}
        self._under_way: dict[Connection, list[int]] = {}  # the task numbers of each worker, in order
        atexit.register(self.kill)  # a worker that hangs in a decoder would keep this process from ending
        for _ in range(num_workers):
            connection, child_end = multiprocessing.Pipe()
            process = multiprocessing.Process(
                target=_run_tasks, args=(child_end, work), daemon=True, name="everest reader"
            )
            start_process(process)
            child_end.close()  # while this end is open here, the worker's death is not noticed
            self._processes[connection] = process
            self._under_way[connection] = []

    def add(self, task_id: int, task: Task) -> bool:
        """Give a task to the worker with the fewest, or keep it for `take` if there is no worker.

        Returns:
            False if each worker has `max_ahead` tasks, so that none got this one.
        """
        if not self._processes:
            self._tasks[task_id] = task
            return True
        least_busy = min(self._under_way, key=lambda connection: len(self._under_way[connection]))
        if len(self._under_way[least_busy]) >= self._max_ahead:
            return False
        try:
            least_busy.send((task_id, task))
        except OSError:
            raise self._explain(least_busy) from None
        self._under_way[least_busy].append(task_id)
        return True

    def take(self, task_id: int, *, timeout: float | None = None) -> Result:
        """Return the result of a task; TimeoutError after `timeout` seconds."""
        if task_id in self._tasks:
            return self._work(self._tasks.pop(task_id))
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while task_id not in self._results:
            remaining = None if timeout is None else max(0.0, deadline - time.monotonic())
            ready_connections = wait(list(self._processes), remaining)
            if not ready_connections:
                raise TimeoutError
            for connection in [each for each in self._processes if each in ready_connections]:
                try:
                    done_id, result = connection.recv()
                except (EOFError, OSError):
                    raise self._explain(connection) from None
                self._results[done_id] = result
                self._under_way[connection].remove(done_id)
        result = self._results.pop(task_id)
        if isinstance(result, Exception):
            raise result
        return result

    def _explain(self, connection: Connection) -> EnvironmentProblem:
        """The error for a worker that closed its connection."""
        process = self._processes[connection]
        process.join(KILL_SECONDS)
        code = process.exitcode
        name = signal_name(code)
        if name == "SIGBUS":  # the worker wrote beyond the free memory
            return no_shared_memory()
        if code in (None, 0) or name in ("SIGKILL", "SIGTERM"):
            return EnvironmentProblem(
                "a process that reads videos was killed, usually because memory is short: lower train.workers"
            )
        cause = name or f"exit code {code}"
        return WorkerCrash(f"a process that reads videos crashed ({cause})", self._under_way[connection][:1])

    def kill(self) -> None:
        """End the workers at once."""
        atexit.unregister(self.kill)
        for process in self._processes.values():
            process.kill()
        for connection, process in self._processes.items():
            process.join(KILL_SECONDS)
            connection.close()
        self._processes.clear()
        self._under_way.clear()


def _run_tasks(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Run tasks on one thread until the connection closes: the workers already run in parallel."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # While processes that the program forked later live, the program's sentinel does not become ready.
    is_child = multiprocessing.get_start_method() != "forkserver"
    for signal_number in STOP_SIGNALS:  # the process that trains handles these signals
        signal.signal(signal_number, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory(READER_KEPT_BYTES)
    try:
        while True:
            ready_objects = wait([connection, parent.sentinel], ORPHAN_SECONDS)
            if parent.sentinel in ready_objects or (is_child and os.getppid() != parent.pid):
                return
            if not ready_objects:
                continue
            task_id, task = connection.recv()
            try:
                result = work(task)
            except UserError as error:
                result = error
            except Exception as error:  # a bug: `take` raises it again
                result = error
                if type(error).__module__ != "builtins":  # the connection may be unable to send it
                    result = RuntimeError(f"{type(error).__name__}: {error}")
                result.add_note(f"in a process that reads videos:\n{traceback.format_exc()}")
            connection.send((task_id, result))
    except (EOFError, OSError):  # the program has ended
        return


SHARED_MEMORY: Final = Path("/dev/shm")
SHARED_MEMORY_FIX: Final = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"


def free_shared_memory() -> int | None:
    """The free bytes of shared memory; None on a system without such a folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def no_shared_memory(*, needed: int | None = None) -> EnvironmentProblem:
    """The error for batches that do not fit into shared memory; `needed` bytes, if known."""
    megabytes = f"{(free_shared_memory() or 0) / 1e6:.0f} MB of {SHARED_MEMORY} are free"
    if needed is not None:
        megabytes = f"the batches of the workers need {needed / 1e6:.0f} MB, {megabytes}"
    return EnvironmentProblem(f"too little shared memory ({megabytes}); {SHARED_MEMORY_FIX}")


def require_shared_memory(needed: int) -> None:
    """Raise EnvironmentProblem if fewer than `needed` bytes of shared memory are free."""
    free = free_shared_memory()
    if free is not None and needed > free:
        raise no_shared_memory(needed=needed)


ALIGNMENT: Final = 64  # bytes of a cache line; more than any number needs
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # shape and type of each tensor of a sample


def field_bytes(layout: Layout, *, num_slots: int, batch_size: int) -> dict[str, int]:
    """The bytes of each tensor of a ring, rounded up."""
    sizes = {
        name: math.prod((num_slots, batch_size, *shape)) * dtype.itemsize
        for name, (shape, dtype) in layout.items()
    }
    return {name: math.ceil(size / ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}


class Ring:
    """R slots of B samples each; `shared` puts them into shared memory, for other processes."""

    def __init__(self, layout: Layout, *, num_slots: int, batch_size: int, shared: bool) -> None:
        sizes = field_bytes(layout, num_slots=num_slots, batch_size=batch_size)
        if shared:
            require_shared_memory(sum(sizes.values()))
        self.memory = torch.empty(sum(sizes.values()), dtype=torch.uint8)
        try:
            if shared:
                self.memory.share_memory_()
        except RuntimeError as error:  # torch's errors for a full /dev/shm and for `ulimit -f`
            import resource  # Windows lacks it

            if 0 <= resource.getrlimit(resource.RLIMIT_FSIZE)[0] < self.memory.numel():
                raise EnvironmentProblem(f"{error}: raise `ulimit -f`, or set train.workers=0") from error
            raise no_shared_memory(needed=self.memory.numel()) from error
        self._tensors: dict[str, Tensor] = {}  # each (R, B, …)
        self._is_pinned = False
        for name, part in zip(layout, self.memory.split([*sizes.values()]), strict=True):
            shape, dtype = layout[name]
            values = part.view(dtype)[: math.prod((num_slots, batch_size, *shape))]  # without the padding
            self._tensors[name] = values.view(num_slots, batch_size, *shape)

    def batch(self, slot: int, num_samples: int) -> dict[str, Tensor]:
        """The (samples, …) tensors of a slot, without a copy."""
        return {name: tensor[slot, :num_samples] for name, tensor in self._tensors.items()}

    def pin(self) -> None:
        """Pin the memory for asynchronous copies to a GPU; EnvironmentProblem if CUDA cannot."""
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
