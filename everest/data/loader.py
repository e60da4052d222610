"""Batches of clips, read by worker processes.

A worker that hangs or dies is an error of the wait for its batch. torch alone would raise the death of a
worker wherever the program is, even during a save.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Final, cast

import torch
from torch.utils.data import DataLoader, default_collate

from everest.data.dataset import Clip, SampleKey, StepSampler, VideoClips
from everest.errors import DataError, EnvironmentProblem, UserError
from everest.system.cpu import READER_KEEPS, keep_freed_memory
from everest.system.launch import STOP_SIGNALS
from everest.system.shared_memory import no_shared_memory, require_shared_memory
from everest.system.worker_folder import make_worker_folder

PREFETCHED: Final = 2  # batches that a worker holds ready; torch's default
SECONDS_TO_DIE: Final = 5.0  # a killed process is gone in milliseconds, unless the kernel is out of memory


def make_loader(
    dataset: VideoClips,
    order: StepSampler | Sequence[list[SampleKey]],
    *,
    workers: int,
    timeout: float,
) -> DataLoader[Clip | UserError]:
    """Returns a loader of batches of clips; iterate over it with `batches`.

    Args:
        timeout: seconds to wait for a batch of a worker.
    Raises:
        EnvironmentProblem: too little shared memory for the batches of the workers.
    """
    require_shared_memory(shared_bytes(dataset, order, workers=workers))
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout if workers else 0,
    )


def shared_bytes(dataset: VideoClips, order: StepSampler | Sequence[list[SampleKey]], *, workers: int) -> int:
    """Returns the bytes of the batches that workers hold ready at once."""
    largest = order.batch_samples if isinstance(order, StepSampler) else max(map(len, order), default=0)
    return dataset.clip_bytes * largest * min(workers * PREFETCHED, len(order))


def _collate(clips: list[Clip | UserError]) -> Clip | UserError:
    error = next((clip for clip in clips if isinstance(clip, UserError)), None)
    try:
        return error or default_collate(clips)
    except RuntimeError as problem:  # torch's errors for a full /dev/shm and for `ulimit -f`, in a worker
        if "File too large" in str(problem):
            return EnvironmentProblem(f"{problem}: raise `ulimit -f`, or set train.workers=0")
        if "shared memory" not in str(problem):
            raise
        return no_shared_memory()


def _start_worker(worker_id: int) -> None:
    """Use one thread, as the workers are the parallelism; leave signals to the process that trains."""
    torch.set_num_threads(1)
    keep_freed_memory(READER_KEEPS)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def batches(loader: DataLoader[Clip | UserError]) -> Generator[Clip]:
    """Yields the batches of a loader; its workers end with it.

    Raises:
        DataError: videos cannot be read, or a worker hangs: the error names the videos of its batch.
        EnvironmentProblem: a worker was killed, or shared memory is full.
    """
    assert isinstance(loader.dataset, VideoClips)
    if loader.num_workers:
        make_worker_folder()
    others = multiprocessing.active_children()
    handler = signal.getsignal(signal.SIGCHLD)
    # Without a limit of its own, torch checks every few seconds whether its workers are alive.
    limit, loader.timeout = loader.timeout, 0
    loaded = iter(loader)
    loader.timeout = limit
    if threading.current_thread() is threading.main_thread():  # elsewhere torch sets no handler
        signal.signal(signal.SIGCHLD, handler)
    workers = [process for process in multiprocessing.active_children() if process not in others]

    def kill() -> None:
        for process in workers:
            process.kill()
        for process in workers:
            process.join(SECONDS_TO_DIE)

    late = threading.Event()
    atexit.register(kill)  # a worker that hangs in a decoder would keep this process from ending
    try:
        for keys in cast("Iterable[list[SampleKey]]", loader.batch_sampler):
            batch = _next_batch(loaded, workers, limit, late)
            if batch is None:
                names = ", ".join(loader.dataset.samples[index].path for _, index in keys)
                raise DataError(f"no clip within {limit:g} s (train.data_timeout) from one of: {names}")
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except BaseException:
        kill()
        raise
    finally:
        atexit.unregister(kill)


def _next_batch(
    loaded: Iterator[Clip | UserError], workers: Sequence[BaseProcess], limit: float, late: threading.Event
) -> Clip | UserError | None:
    """Returns the next batch, or None if it did not come within `limit` seconds (0: no limit).

    Args:
        late: set if the limit was exceeded; then the workers are killed.
    Raises:
        EnvironmentProblem: a worker was killed otherwise.
    """

    def end_workers() -> None:
        late.set()
        for process in workers:
            process.kill()

    # torch's limit covers the announcement of a batch only, and a stopped worker never passes its memory.
    timer = threading.Timer(limit, end_workers)
    timer.daemon = True
    if limit:
        timer.start()
    try:
        return next(loaded)
    except (RuntimeError, OSError, EOFError):  # the end of a worker causes any of them
        closed = wait([process.sentinel for process in workers], SECONDS_TO_DIE) if workers else []
        for process in workers:
            if process.sentinel in closed:
                process.join(SECONDS_TO_DIE)
        if late.is_set():
            return None
        if any(process.exitcode == -signal.SIGBUS for process in workers):  # written beyond the free memory
            raise no_shared_memory() from None
        if any(process.exitcode for process in workers):
            raise EnvironmentProblem(
                "a process that reads videos was killed, usually because memory is short: lower train.workers"
            ) from None
        raise
    finally:
        timer.cancel()


def on_device(batch: Clip, device: torch.device) -> Clip:
    """Copies the tensors that a model needs to `device`, without waiting for the copies."""
    names = ("frames", "label", "noise", "erase")
    moved = {name: getattr(batch, name).to(device, non_blocking=True) for name in names}
    tokens = {name: value.to(device, non_blocking=True) for name, value in batch.tokens.items()}
    return batch._replace(**moved, tokens=tokens)
