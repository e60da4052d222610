"""The processes that read clips, and what is told when one of them hangs or dies.

torch answers the death of a worker by an error wherever the program happens to be, in the midst of a save
even. Here it is an error of the wait for a batch, and of nothing else.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import Final, cast

import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from everest.data.dataset import Clip, SampleKey, VideoClips
from everest.errors import DataError, EnvironmentProblem, UserError
from everest.system.cpu import READER_KEEPS, keep_freed_memory

SECONDS_TO_DIE: Final = 5.0  # a killed process is gone in milliseconds, if the kernel is not out of memory
TORCH_TIMED_OUT: Final = "DataLoader timed out"


def make_loader(
    dataset: VideoClips,
    order: Sampler[list[SampleKey]] | Sequence[list[SampleKey]],
    *,
    workers: int,
    timeout: float,
) -> DataLoader[Clip | UserError]:
    """A loader of batches of clips; read it by `batches`.

    Args:
        timeout: seconds to wait for a worker before giving up.
    """
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout if workers else 0,
    )


def batches(loader: DataLoader[Clip | UserError]) -> Generator[Clip]:
    """The batches of a loader; what goes wrong in its workers is told as a user's error.

    Raises:
        DataError: videos cannot be read, or a worker hangs; the videos that it was reading are named.
        EnvironmentProblem: a worker was killed.
    """
    order = cast("Iterable[list[SampleKey]]", loader.batch_sampler)
    with _Workers(loader) as workers:
        for keys in order:
            try:
                batch = workers.next_batch()
            except TimeoutError as error:
                names = ", ".join(_paths(loader, keys))
                late = f"no clip within {loader.timeout:g} s (train.data_timeout) from one of: {names}"
                raise DataError(late) from error
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _paths(loader: DataLoader[Clip | UserError], keys: Iterable[SampleKey]) -> list[str]:
    assert isinstance(loader.dataset, VideoClips)
    return [loader.dataset.samples[index].path for _, index in keys]


class _Workers:
    """The worker processes of one pass over a loader."""

    def __init__(self, loader: DataLoader[Clip | UserError]) -> None:
        self._loader = loader
        self._waiting = False
        self._late = threading.Event()

    def __enter__(self) -> _Workers:
        others = multiprocessing.active_children()
        self._handler = signal.getsignal(signal.SIGCHLD)
        self._loaded = iter(self._loader)
        self._processes = [child for child in multiprocessing.active_children() if child not in others]
        atexit.register(self._kill)
        self._handle(self._on_death)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle(self._handler)
        if exception[0] is not None:
            self._kill()
        atexit.unregister(self._kill)
        del self._loaded  # its end is the workers'

    def next_batch(self) -> Clip | UserError:
        """The next batch.

        Raises:
            TimeoutError: none came in time; the workers are ended.
            EnvironmentProblem: a worker was killed.
        """
        self._waiting = True
        try:
            self._check()
            with self._time_limit():
                return next(self._loaded)
        except (RuntimeError, OSError, EOFError) as error:  # a dying worker shows in any of them
            self._waiting = False
            if self._late.is_set() or str(error).startswith(TORCH_TIMED_OUT):
                self._kill()
                raise TimeoutError from error
            self._let_die()
            self._check()
            raise
        finally:
            self._waiting = False

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """End workers that are late.

        torch's own limit is of the wait for a batch's announcement, and not of that for its memory, which a
        worker that is stopped never hands over.
        """
        if not self._loader.timeout:
            yield
            return
        timer = threading.Timer(self._loader.timeout, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_late(self) -> None:
        self._late.set()
        for process in self._processes:
            process.kill()

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        # An end of ours closes connections, which the wait notices; an error from here could fall between the
        # end of a process and the note that it ended.
        if self._waiting and not self._late.is_set():
            self._check()

    def _check(self) -> None:
        if self._late.is_set():
            raise TimeoutError
        if any(process.exitcode for process in self._processes):
            raise EnvironmentProblem(
                "a process that reads videos was killed, most often for want of memory: lower train.workers"
            )

    def _let_die(self) -> None:
        """Wait for a worker whose connections are closed already: it can be asked for its end only then."""
        if not self._processes:
            return
        closed = wait([process.sentinel for process in self._processes], SECONDS_TO_DIE)
        for process in self._processes:
            if process.sentinel in closed:
                process.join(SECONDS_TO_DIE)

    def _kill(self) -> None:
        """End the workers for good: one that hangs in a decoder would keep this process from ending."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(SECONDS_TO_DIE)

    def _handle(self, handler: Callable[[int, FrameType | None], object] | int | None) -> None:
        """Signals can be handled in a main thread only, and elsewhere torch does not either."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def _collate(items: list[Clip | UserError]) -> Clip | UserError:
    failed = next((item for item in items if isinstance(item, UserError)), None)
    return failed or default_collate(items)


def _start_worker(worker_id: int) -> None:
    """One thread a worker: the workers are the parallelism. Signals are for the process that trains."""
    torch.set_num_threads(1)
    keep_freed_memory(READER_KEEPS)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def on_device(batch: Clip, device: torch.device) -> Clip:
    """The batch with what a model needs on `device`, without waiting for the copy."""
    names = ("frames", "label", "noise", "erase")
    moved = {name: getattr(batch, name).to(device, non_blocking=True) for name in names}
    tokens = {name: value.to(device, non_blocking=True) for name, value in batch.tokens.items()}
    return batch._replace(**moved, tokens=tokens)
