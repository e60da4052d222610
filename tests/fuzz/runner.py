"""A pool of forked processes that run cases, and a watchdog that ends those that hang or fill the memory.

torch and the package are imported once, before the first fork. A process runs a batch of cases one after
the other. A case that fails there runs again in a fresh process, so that a failure never depends on the
cases before it; if it passes alone, that is a failure of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from .bases import Bases
from .case import CaseId, Kind
from .outcome import Outcome
from .worker import PEAK_BYTES, limit_memory, run_case, write_input

BATCH = 25  # cases of a process
SECONDS = 60.0  # for a case; generous, because a busy machine is no hang
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1


@dataclass
class _Child:
    """A process, the cases that it has still to run, and the current one."""

    pid: int
    connection: Connection
    waiting: deque[CaseId]
    folder: Path
    fresh: bool = True  # no case has ended in it yet
    current: CaseId | None = None
    since: float = 0.0
    killed_for: str | None = None


@dataclass
class Runner:
    """Runs cases of several kinds."""

    kinds: dict[str, Kind]
    bases: Bases
    folder: Path
    workers: int = 1
    seconds: float = SECONDS
    _children: dict[Connection, _Child] = field(default_factory=dict)
    _alone: deque[list[CaseId]] = field(default_factory=deque)
    _suspects: dict[CaseId, Outcome] = field(default_factory=dict)
    _made: int = 0

    def run(self, ids: Sequence[CaseId]) -> Iterator[Outcome]:
        """Yield the outcome of every case, in the order in which they end."""
        gc.freeze()  # fewer pages to copy after a fork
        batches = deque(list(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH))
        try:
            while batches or self._alone or self._children:
                while (batches or self._alone) and len(self._children) < self.workers:
                    self._start(self._alone.popleft() if self._alone else batches.popleft())
                for connection in wait(list(self._children), POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    yield from self._receive(self._children[connection])
                self._watch()
        finally:
            gc.unfreeze()
            for child in self._children.values():
                _kill(child.pid)

    def keep_input(self, outcome: Outcome, folder: Path) -> None:
        """Save the input of a case, its command and its messages."""
        write_input(self.kinds[outcome.id.kind], outcome.id, self.bases, folder)
        report = [outcome.id.command, " ".join(outcome.argv), *outcome.problems, "", outcome.stderr]
        (folder / "REPORT.txt").write_text("\n".join(report), errors="replace")

    def _start(self, ids: list[CaseId]) -> None:
        ours, theirs = Pipe()
        self._made += 1
        folder = self.folder / f"process-{self._made}"
        pid = os.fork()
        if not pid:
            _in_child(lambda: self._serve(theirs, ids, folder))
        theirs.close()
        self._children[ours] = _Child(pid, ours, deque(ids), folder)

    def _serve(self, connection: Connection, ids: list[CaseId], folder: Path) -> None:
        limit_memory()
        for case_id in ids:
            connection.send(case_id)
            connection.send(run_case(self.kinds[case_id.kind], case_id, self.bases, folder / "case"))

    def _receive(self, child: _Child) -> Iterator[Outcome]:
        try:
            message = child.connection.recv()
        except (EOFError, ConnectionResetError):
            yield from self._ended(child)
            return
        if isinstance(message, CaseId):
            child.current, child.since = message, time.monotonic()
            child.waiting.popleft()
            return
        child.current = None
        yield from self._judge(message, fresh=child.fresh)
        child.fresh = False

    def _judge(self, outcome: Outcome, *, fresh: bool) -> Iterator[Outcome]:
        """Yield an outcome, unless it is a failure that may be due to the cases before."""
        before = self._suspects.pop(outcome.id, None)
        if outcome.problems and not fresh:
            self._suspects[outcome.id] = outcome
            self._alone.append([outcome.id])
            return
        if before is not None and not outcome.problems:
            before.problems = [f"fails after other cases in one process: {p}" for p in before.problems]
            outcome = before
        yield outcome

    def _ended(self, child: _Child) -> Iterator[Outcome]:
        """A process has ended: after its last case, or in the middle of one."""
        del self._children[child.connection]
        child.connection.close()
        _, status = os.waitpid(child.pid, 0)
        _kill(child.pid)  # the processes that it started
        if child.current is not None:
            code = os.waitstatus_to_exitcode(status)
            name = signal.Signals(-code).name if code < 0 else f"os._exit({code})"
            problems = [child.killed_for or f"the process was ended by {name}"]
            seconds = time.monotonic() - child.since
            outcome = Outcome(id=child.current, argv=[], code=None, problems=problems, seconds=seconds)
            yield from self._judge(outcome, fresh=child.fresh)
        elif child.waiting:
            raise RuntimeError(f"a process of the suite ended before {child.waiting[0]}: its own fault")
        if child.waiting:
            self._alone.append(list(child.waiting))
        shutil.rmtree(child.folder, ignore_errors=True)

    def _watch(self) -> None:
        for child in self._children.values():
            if child.current is None:
                continue
            if time.monotonic() - child.since > self.seconds:
                child.killed_for = f"hangs: not done after {self.seconds:g} s"
            elif _resident(child.pid) > 4 * PEAK_BYTES:
                child.killed_for = f"used more than {4 * PEAK_BYTES >> 20} MiB"
            if child.killed_for:
                _kill(child.pid)


def _in_child(work: Callable[[], None]) -> None:
    """Do `work` in a process just forked, which ends here and never returns."""
    code = 70
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()  # a group of its own, to be killed with all processes that it starts
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        work()
        code = 0
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        if code:
            import traceback

            traceback.print_exc()
        os._exit(code)


def in_fork(work: Callable[[], None]) -> None:
    """Do `work` in a forked process, so that it leaves nothing behind in this one.

    Raises:
        RuntimeError: it failed; its traceback is on stderr.
    """
    pid = os.fork()
    if not pid:
        _in_child(work)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError("a forked process failed")


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
