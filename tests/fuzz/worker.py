"""Runs batches of cases in forked processes, with limits on the memory and the time of a case.

torch and the package are imported once, before the first fork.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import torch

import everest_cli.main

from .bases import Bases
from .case import CaseId, Kind
from .outcome import Outcome, problems_of, snapshot

ADDRESS_BYTES = 4 << 30  # that a case may map in addition: more is an error of the allocation
PEAK_BYTES = 1 << 30  # that a case may use
PR_SET_PDEATHSIG = 1


def run_batch(
    kinds: dict[str, Kind], bases: Bases, root: Path, seconds: float, ids: Sequence[CaseId]
) -> list[Outcome]:
    """Run cases one after the other in a process, and in another after one that hangs or ends its process."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(ids):
        ours, theirs = Pipe(duplex=False)
        pid = os.fork()
        if not pid:
            _serve(theirs, kinds, bases, root / str(os.getpid()), ids[len(outcomes) :])
        theirs.close()
        try:
            while ours.poll(seconds):
                outcomes.append(ours.recv())
            problem = f"hangs: not done after {seconds:g} s"
        except EOFError:
            problem = f"ended its process, with exit code {_exit_code_of(pid)}"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # with the processes that it started
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        if len(outcomes) < len(ids):
            outcomes.append(Outcome(id=ids[len(outcomes)], argv=[], code=None, problems=[problem]))
    return outcomes


def _exit_code_of(pid: int, seconds: float = 5.0) -> int | None:
    """Of a process that has closed its pipe; None if it still runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _serve(
    parent: Connection, kinds: dict[str, Kind], bases: Bases, root: Path, ids: Sequence[CaseId]
) -> NoReturn:
    """Send the outcomes of cases from a process just forked, which ends here."""
    os.setsid()  # a group of its own, to be killed with all processes that it starts
    torch.set_num_threads(1)  # renews torch's thread pool: two threads of a backward pass may not at once
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A huge allocation fails at once.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for case_id in ids:
            parent.send(run_case(kinds[case_id.kind], case_id, bases, root))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_case(kind: Kind, case_id: CaseId, bases: Bases, folder: Path) -> Outcome:
    """Write the input of a case into `folder`, run its command there and judge the result."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = kind.make(case_id.rng(), folder, bases)
    before = snapshot(folder)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    resident, started = _memory("VmRSS"), time.monotonic()
    code, stdout, stderr = call(case.argv, folder)
    seconds, peak = time.monotonic() - started, max(0, _memory("VmHWM") - resident)
    outcome = Outcome(id=case_id, argv=case.argv, code=code, seconds=seconds, peak_bytes=peak, note=case.note)
    outcome.stdout, outcome.stderr = stdout, stderr
    outcome.problems = problems_of(case, outcome, folder, before)
    if peak > PEAK_BYTES:
        outcome.problems.append(f"used more than {PEAK_BYTES >> 20} MiB")
    return outcome


def call(argv: list[str], folder: Path) -> tuple[int, str, str]:
    """Run `everest ARGV` in `folder`; returns the exit code that a shell would see, stdout and stderr."""
    environment, handlers = dict(os.environ), {n: signal.getsignal(n) for n in (2, 10, 15)}
    arguments = sys.argv
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        contextlib.chdir(folder),
        _as_output(out.fileno(), err.fileno()),
    ):
        sys.argv = ["everest", *argv]
        try:
            code = _exit_code()
        finally:
            sys.argv = arguments
            os.environ.clear()
            os.environ.update(environment)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.stdout.flush()
            sys.stderr.flush()
        out.seek(0)
        err.seek(0)
        stdout, stderr = (file.read(1 << 20).decode(errors="replace") for file in (out, err))
    return code, stdout, stderr


def _exit_code() -> int:
    """Of the program, by the rules of the interpreter."""
    try:
        everest_cli.main.main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # as the interpreter: any other error is a traceback and exit code 1
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_output(*files: int) -> Iterator[None]:
    """Let descriptors 1 and 2 be these files, also for libraries in C."""
    saved = os.dup(1), os.dup(2)
    for file, target in zip(files, (1, 2), strict=True):
        os.dup2(file, target)
    try:
        yield
    finally:
        for descriptor, target in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)


def _memory(name: str) -> int:
    """A value of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
