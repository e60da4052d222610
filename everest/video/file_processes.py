"""Runs work on many files in separate processes, so that a crash or a hang costs one file only.

Decoders are written in C; a damaged file can crash the process that reads it, or make it hang. Before each
file, a process sets a timer whose signal ends it at the time limit, even if the interpreter is blocked.
Another process then takes its place.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from everest.system.processes import start_process
from everest.system.signals import signal_name

Result = TypeVar("Result")

# Not fork: a copy of a process with threads may wait for a lock forever. A server imports the modules once.
_HAS_SERVER = "forkserver" in multiprocessing.get_all_start_methods()  # Windows has none
_CONTEXT = multiprocessing.get_context("forkserver") if _HAS_SERVER else multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no result."""

    reason: str


def map_in_processes(
    work: Callable[[str], Result], items: Sequence[str], *, workers: int, timeout: float
) -> Iterator[tuple[str, Result | Failure]]:
    """Call `work` on every item in separate processes; yields items with their results as they finish.

    Args:
        work: a function of a module, or a partial of one; its exceptions are raised here.
        timeout: limit of seconds per item.
    """
    module_function = work.func if isinstance(work, partial) else work
    if _HAS_SERVER:
        _CONTEXT.set_forkserver_preload([module_function.__module__])
    pending = iter(items)
    busy = {}
    try:
        for item in islice(pending, workers):
            worker = _Worker(work, timeout).start(item)
            busy[worker.connection] = worker
        while busy:
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                item, result = worker.receive()
                next_item = next(pending, None)
                if next_item is None:
                    worker.end()
                else:
                    worker = worker.start(next_item)
                    busy[worker.connection] = worker
                yield item, result
    finally:
        for worker in busy.values():
            worker.end()


class _Worker(Generic[Result]):
    """A process and the item it works on."""

    def __init__(self, work: Callable[[str], Result], timeout: float) -> None:
        self.connection, child_end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(child_end, work, timeout), daemon=True)
        start_process(self._process)
        child_end.close()
        self._work, self._timeout = work, timeout

    def start(self, item: str) -> _Worker[Result]:
        """Work on an item in this process, or in a new one if this one has died; returns its worker."""
        self._item = item
        try:
            self.connection.send(item)
        except (BrokenPipeError, ConnectionResetError):
            self.end()
            return _Worker(self._work, self._timeout).start(item)
        return self

    def receive(self) -> tuple[str, Result | Failure]:
        """The item and its result."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            name = signal_name(code)
            reason = f"the decoder ended with code {code}"
            if name == "SIGALRM":  # the signal of the timer
                reason = f"not decoded within {self._timeout:g} s"
            elif name is not None:
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


def _serve(connection: Connection, work: Callable[[str], Result], timeout: float) -> None:
    """Receive items and send their results, until the connection closes."""
    # Ctrl-C goes to all processes of a terminal; the main process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            item = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, timeout)
            try:
                result = work(item)
            except Exception as error:  # a bug: raised again in the main process
                result = error
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
