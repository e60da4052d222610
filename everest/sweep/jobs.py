"""Runs commands as processes: several at once, each after the one that it needs, until all have ended.

Each has its share of the devices and cores, and a log in which its error is found.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from everest.system.cores import JOBS, num_cores
from everest.system.files import write_error
from everest.system.launch import Devices, visible_gpus
from everest.system.signals import SignalForwarder, Stopped

POLL_SECONDS: Final = 0.05
THREADS: Final = "OMP_NUM_THREADS"
LAST_LINES: Final = 200  # of a log, in which the error of a job is searched
NO_LINE: Final = "no message"
State = Literal["finished", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How the jobs of a sweep are started."""

    program: Sequence[str]  # the words that start `everest`
    devices: Devices
    jobs: int = 1  # at once

    @property
    def gpus(self) -> str:
        """The option --gpus of each job."""
        if self.devices.kind != "cuda":
            return self.devices.kind
        return "auto" if self.jobs == 1 else "1"

    @property
    def environments(self) -> list[dict[str, str]]:
        """The variables of each job at once: how many there are, and its GPU, round robin, or its threads."""
        if self.jobs == 1:
            return [self.devices.environment]
        shared = {JOBS: str(self.jobs)}
        if self.devices.kind == "cuda":
            return [shared | visible_gpus([slot % self.devices.processes]) for slot in range(self.jobs)]
        if THREADS not in os.environ:
            shared[THREADS] = str(max(1, num_cores() // self.jobs))
        return [shared] * self.jobs


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command and its files."""

    name: str
    command: tuple[str, ...]
    needs: str | None  # the job that must have finished before
    log: Path  # stderr is appended
    output: Path  # stdout, written again by each start


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended."""

    job: Job
    state: State
    code: int = 0  # of the process; below 0: the signal that killed it
    seconds: float = 0.0
    log_start: int = 0  # bytes of its log that earlier starts wrote


@dataclass(kw_only=True)
class _Running:
    job: Job
    process: subprocess.Popen[Any]
    slot: int
    log_start: int
    began: float = field(default_factory=time.monotonic)


def run_jobs(
    jobs: Sequence[Job],
    *,
    environments: Sequence[Mapping[str, str]],
    can_start: Callable[[Job], bool],
    on_end: Callable[[Ended], bool],
    resume: str,
    before: int = 0,
) -> None:
    """Run all jobs, the first that is possible first.

    A signal that stops this process is forwarded to the running jobs, and ends the call after them. A process
    that is killed takes its jobs along (everest.system.signals.end_with_parent).

    Args:
        jobs: each after the one that it needs, which need not be among them if it has finished before.
        environments: variables of the processes, by their slot; there are as many processes as slots.
        can_start: whether a job may start now, for a job whose files another process may still write.
        on_end: called after each job; returns whether it is finished. If not, jobs that need it are skipped.
        resume: how to resume, for the message of a stop.
        before: jobs that have finished in earlier calls, for this message.
    """
    waiting, running, names = list(jobs), [], {job.name for job in jobs}
    finished: set[str] = set()
    lost: set[str] = set()
    with SignalForwarder() as signals:
        while (waiting and not signals.received) or running:
            for entry in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(entry)
                code = entry.process.returncode
                if signals.received and code:
                    continue  # stopped with this process
                ended = Ended(
                    job=entry.job,
                    state="failed" if code else "finished",
                    code=code,
                    seconds=time.monotonic() - entry.began,
                    log_start=entry.log_start,
                )
                (finished if on_end(ended) else lost).add(entry.job.name)
            for job in [job for job in waiting if job.needs in lost]:
                waiting.remove(job)
                lost.add(job.name)
                on_end(Ended(job=job, state="skipped"))
            slots = [slot for slot in range(len(environments)) if slot not in {e.slot for e in running}]
            possible = (job for job in waiting if job.needs not in names - finished and can_start(job))
            job = next(possible, None) if slots and not signals.received else None
            if job is None:
                time.sleep(POLL_SECONDS)
                continue
            waiting.remove(job)
            written = job.log.stat().st_size if job.log.exists() else 0
            process = _start(job, environments[slots[0]], signals)
            running.append(_Running(job=job, process=process, slot=slots[0], log_start=written))
    if signals.received:
        done = f"{before + len(finished)} of {before + len(jobs)} jobs finished"
        raise Stopped(signals.received[-1], f"stopped: {done}; {resume}")


def _start(job: Job, environment: Mapping[str, str], signals: SignalForwarder) -> subprocess.Popen[Any]:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.output.unlink(missing_ok=True)  # a process of an earlier call may still write into the old file
        with job.log.open("ab") as log, job.output.open("wb") as output:
            return signals.start(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env={**os.environ, **environment},
            )
    except OSError as error:
        raise write_error(job.log, error) from error


def last_error(log: Path, start: int) -> str:
    """The error in the messages of a failed command, in one line; those before byte `start` are older."""
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return NO_LINE
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [NO_LINE])[-1]
