"""Work on many files in separate processes, so that a crash or a hang costs one file only.

Decoders are written in C; a damaged file can crash the process that reads it, or make it hang. Each process
sets an alarm before a file, at which the kernel ends the process. Another process then takes its place.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")

# Not fork: a copy of a process with threads may wait for a lock forever. The modules are imported once.
_PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no result."""

    reason: str


def map_apart(
    work: Callable[[str], Result], items: Sequence[str], *, workers: int, limit: float
) -> Iterator[tuple[str, Result | Failure]]:
    """Call `work` on every item in separate processes; yields items with their results as they finish.

    Args:
        work: a function of a module; its exceptions are raised here.
        limit: seconds for an item.
    """
    _PROCESSES.set_forkserver_preload([work.__module__])
    waiting = iter(items)
    busy = {}
    try:
        for item in (next(waiting) for _ in range(min(workers, len(items)))):
            worker = _Worker(work, limit)
            worker.start(item)
            busy[worker.connection] = worker
        while busy:
            for ready in wait(list(busy)):
                worker = busy.pop(ready)
                item, result = worker.take()
                following = next(waiting, None)
                if following is None:
                    worker.end()
                else:
                    if worker.is_dead:
                        worker = _Worker(work, limit)
                    worker.start(following)
                    busy[worker.connection] = worker
                yield item, result
    finally:
        for worker in busy.values():
            worker.end()


class _Worker(Generic[Result]):
    """A process and the item it works on."""

    def __init__(self, work: Callable[[str], Result], limit: float) -> None:
        self.connection, child = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(child, work, limit), daemon=True)
        self._process.start()
        child.close()
        self._limit = limit
        self.is_dead = False

    def start(self, item: str) -> None:
        self._item = item
        self.connection.send(item)

    def take(self) -> tuple[str, Result | Failure]:
        """The item and its result."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.is_dead = True
            code = self._process.exitcode
            reason = f"the decoder ended with code {code}"
            if code == -signal.SIGALRM:
                reason = f"not decoded within {self._limit:g} s"
            elif code is not None and code < 0:
                name = signal.Signals(-code).name
                hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
                reason = f"the decoder was ended by {name}{hint}"
            return self._item, Failure(reason)
        if isinstance(result, Exception):
            raise result
        return self._item, result

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[str], Result], limit: float) -> None:
    """The loop of a process: receive an item, send its result, until the connection closes."""
    # Ctrl-C goes to all processes of a terminal; the main process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            item = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                result = work(item)
            except Exception as error:  # a bug: raised again in the main process
                result = error
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
