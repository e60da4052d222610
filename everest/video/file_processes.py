"""Runs work on many files in separate processes, so that a crash or a hang costs one file only.

Decoders are written in C; a damaged file can crash the process that reads it, or make it hang. Before each
file, a process starts a thread that ends it at the time limit, even if the interpreter is blocked. Another
process then takes its place.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Generic, TypeVar

from everest.system.events import Report, notice
from everest.system.processes import start_process
from everest.system.signals import signal_name

Result = TypeVar("Result")

# Not fork: a copy of a process with threads may wait for a lock forever. A server imports the modules once.
_HAS_SERVER = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
_CONTEXT = multiprocessing.get_context("forkserver") if _HAS_SERVER else multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no result."""

    reason: str


def map_apart(
    work: Callable[[str], Result], items: Sequence[str], *, workers: int, limit: float
) -> Iterator[tuple[str, Result | Failure]]:
    """Call `work` on every item in separate processes; yields items with their results as they finish.

    Args:
        work: a function of a module, or a partial of one; its exceptions are raised here.
        limit: seconds for an item.
    """
    function = work.func if isinstance(work, partial) else work
    if _HAS_SERVER:
        _CONTEXT.set_forkserver_preload([function.__module__])
    waiting = iter(items)
    busy = {}
    try:
        for item in islice(waiting, workers):
            worker = _Worker(work, limit).start(item)
            busy[worker.connection] = worker
        while busy:
            for ready in wait(list(busy)):
                worker = busy.pop(ready)
                item, result = worker.take()
                following = next(waiting, None)
                if following is None:
                    worker.end()
                else:
                    worker = worker.start(following)
                    busy[worker.connection] = worker
                yield item, result
    finally:
        for worker in busy.values():
            worker.end()


def collect_apart(
    work: Callable[[str], Result | Failure],
    videos: Sequence[str],
    report: Report,
    *,
    workers: int,
    limit: float,
) -> tuple[dict[str, Result], dict[str, str]]:
    """`map_apart` all videos; returns the results, and the reasons of those without one, both by video."""
    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    for video, result in map_apart(work, videos, workers=workers, limit=limit):
        if isinstance(result, Failure):
            failed[video] = result.reason
            report(notice(f"{video}: {result.reason}"))
        else:
            results[video] = result
        report({"event": "video", "done": len(results) + len(failed), "videos": len(videos)})
    return results, failed


class _Worker(Generic[Result]):
    """A process and the item it works on."""

    def __init__(self, work: Callable[[str], Result], limit: float) -> None:
        self.connection, child = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(child, work, limit), daemon=True)
        start_process(self._process)
        child.close()
        self._work, self._limit = work, limit

    def start(self, item: str) -> _Worker[Result]:
        """Work on an item in this process, or in another one if it has died; returns its worker."""
        self._item, self._began = item, time.monotonic()
        try:
            self.connection.send(item)
        except (BrokenPipeError, ConnectionResetError):
            self.end()
            return _Worker(self._work, self._limit).start(item)
        return self

    def take(self) -> tuple[str, Result | Failure]:
        """The item and its result."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            name = signal_name(code)
            reason = f"the decoder ended with code {code}"
            if code == 1 and time.monotonic() - self._began >= self._limit:  # faulthandler's exit code
                reason = f"not decoded within {self._limit:g} s"
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


def _serve(connection: Connection, work: Callable[[str], Result], limit: float) -> None:
    """Receive items and send their results, until the connection closes."""
    # Ctrl-C goes to all processes of a terminal; the main process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Path(os.devnull).open("w") as nowhere:  # the thread writes where the process was
        while True:
            try:
                item = connection.recv()
                faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)
                try:
                    result = work(item)
                except Exception as error:  # a bug: raised again in the main process
                    result = error
                faulthandler.cancel_dump_traceback_later()
                connection.send(result)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return
