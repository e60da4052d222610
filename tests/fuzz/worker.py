"""Runs cases in this process through the program's entry, with stdout and stderr caught as bytes."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import everest_cli.main

from .bases import Bases
from .case import Case, CaseId, Kind
from .outcome import Outcome, problems_of, snapshot

ADDRESS_BYTES = 4 << 30  # that a case may map in addition: more is an error of the allocation
PEAK_BYTES = 1 << 30  # that a case may use


def limit_memory() -> None:
    """Limit the address space of this process, so that a huge allocation fails at once."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_case(kind: Kind, case_id: CaseId, bases: Bases, folder: Path) -> Outcome:
    """Write the input of a case into `folder`, run its command there and judge the result."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = kind.make(case_id.rng(), folder, bases)
    before = snapshot(folder)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    resident = _memory("VmRSS")
    started = time.monotonic()
    code, stdout, stderr = call(case.argv, folder)
    seconds, peak = time.monotonic() - started, max(0, _memory("VmHWM") - resident)
    outcome = Outcome(id=case_id, argv=case.argv, code=code, seconds=seconds, peak_bytes=peak, note=case.note)
    outcome.stdout, outcome.stderr = stdout, stderr
    outcome.problems = problems_of(case, outcome, folder, before)
    if outcome.peak_bytes > PEAK_BYTES:
        outcome.problems.append(f"used more than {PEAK_BYTES >> 20} MiB")
    return outcome


def call(argv: list[str], folder: Path) -> tuple[int, str, str]:
    """Run `everest ARGV` in `folder`; returns the exit code that a shell would see, stdout and stderr."""
    environment, handlers = dict(os.environ), {n: signal.getsignal(n) for n in (2, 10, 15)}
    here, arguments = Path.cwd(), sys.argv
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        _as_output(out.fileno(), err.fileno()),
    ):
        os.chdir(folder)
        sys.argv = ["everest", *argv]
        try:
            code = _exit_code()
        finally:
            sys.argv = arguments
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.stdout.flush()
            sys.stderr.flush()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode(errors="replace"))
    return code, *texts


def _exit_code() -> int:
    """Of the program, by the rules of the interpreter."""
    try:
        everest_cli.main.run_app()
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
def _as_output(out: int, err: int):
    """Let descriptors 1 and 2 be these files, also for libraries in C."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(out, 1)
    os.dup2(err, 2)
    try:
        yield
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)


def _memory(name: str) -> int:
    """A value of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def write_input(kind: Kind, case_id: CaseId, bases: Bases, folder: Path) -> Case:
    """Write the input of a case as it was before its command ran, to look at it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return kind.make(case_id.rng(), folder, bases)
