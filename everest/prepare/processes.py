"""Work on many files in processes of their own: one that crashes or hangs costs its file, not the work.

Decoders are C; a damaged file can end the process that reads it, or never end. Each process sets an alarm
before a file: the kernel ends it when time is up, wherever it is. Another then takes its place.
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
    """A process that ended instead of giving a result."""

    reason: str


def map_apart(
    work: Callable[[str], Result], items: Sequence[str], *, workers: int, limit: float
) -> Iterator[tuple[str, Result | Failure]]:
    """`work` on every item, as they get done.

    Args:
        work: a function of a module; what it raises is raised here.
        limit: seconds for an item.
    """
    _PROCESSES.set_forkserver_preload([work.__module__])
    waiting = iter(items)
    busy = {}
    try:
        for item in (next(waiting) for _ in range(min(workers, len(items)))):
            worker = _Worker(work, limit)
            worker.give(item)
            busy[worker.connection] = worker
        while busy:
            for ready in wait(list(busy)):
                worker = busy.pop(ready)
                item, result = worker.take()
                following = next(waiting, None)
                if following is None:
                    worker.end()
                else:
                    if isinstance(result, Failure):
                        worker = _Worker(work, limit)
                    worker.give(following)
                    busy[worker.connection] = worker
                yield item, result
    finally:
        for worker in busy.values():
            worker.end()


class _Worker(Generic[Result]):
    """A process and the item that it works on."""

    def __init__(self, work: Callable[[str], Result], limit: float) -> None:
        self.connection, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, work, limit), daemon=True)
        self._process.start()
        theirs.close()
        self._limit = limit

    def give(self, item: str) -> None:
        self._item = item
        self.connection.send(item)

    def take(self) -> tuple[str, Result | Failure]:
        """The item and its result."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return self._item, Failure(_told(self._process.exitcode, self._limit))
        if isinstance(result, Exception):
            raise result
        return self._item, result

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[str], Result], limit: float) -> None:
    """What a process does: item in, result out, until nobody asks any more."""
    # Ctrl-C goes to all processes of a terminal; the first one ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            item = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                result = work(item)
            except Exception as error:  # a bug of ours: raised where it can be seen
                result = error
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _told(code: int | None, limit: float) -> str:
    if code == -signal.SIGALRM:
        return f"not decoded within {limit:g} s"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", which may mean that memory was short" if name == "SIGKILL" else ""
        return f"the decoder was ended by {name}{hint}"
    return f"the decoder ended with code {code}"
