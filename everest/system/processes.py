"""The processes of a run, one per device: their ranks, and how `everest` starts and stops them.

A run of several processes is the same command several times; each process reads its rank from the
environment variables of torch.distributed and Accelerate, which everest, torchrun, accelerate or Slurm has
set. If everest starts the processes, the first one only watches.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NamedTuple

from everest.errors import EnvironmentProblem
from everest.system.devices import Devices, visible_gpus
from everest.system.terminal import leave_closed_terminal

NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")  # variables of a launcher
LAUNCHER: Final = (*NUMBERS, "MASTER_ADDR")


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several.

    Raises:
        EnvironmentProblem: some of the launcher's variables are missing or no numbers.
    """
    adopt_slurm(os.environ)
    # torch takes LOCAL_RANK=-1 for no rank.
    present = [name for name in LAUNCHER if os.environ.get(name, "-1") != "-1"]
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(present):
        return False
    missing = [name for name in LAUNCHER if name not in present]
    if missing:
        raise EnvironmentProblem(
            f"the environment has {', '.join(present)}, but not {', '.join(missing)}: a launcher such as "
            f"torchrun sets all of them; without one, unset {' '.join(present)}"
        )
    for name in (*NUMBERS, "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdecimal()):
            raise EnvironmentProblem(f"{name}={value} in the environment is no number; unset it")
    return True


def is_main() -> bool:
    """Whether this process is the one that writes files and messages."""
    return os.environ.get("RANK", "0") == "0"


def local_processes() -> int:
    """The number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_lost_peer(error: Exception) -> bool:
    """Whether torch.distributed reports by `error` that another process of the run has ended.

    Its stores and NCCL raise a DistError; gloo raises a plain RuntimeError whose text names gloo's source.
    """
    text = str(error)
    by_torch = "gloo" in text or any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return isinstance(error, RuntimeError) and by_torch and "onnection" in text


def adopt_slurm(environment: dict[str, str] | os._Environ[str]) -> None:
    """Give a task of `srun` the variables that torch.distributed reads."""
    # The variables of the step, not of the job: an sbatch script has the job's, and is one process.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or int(tasks) < 2 or not environment.keys() >= {"SLURM_PROCID", "SLURM_LOCALID"}:
        return
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    tasks_here = environment.get("SLURM_STEP_TASKS_PER_NODE", tasks)  # such as 8(x2)
    environment["LOCAL_WORLD_SIZE"] = tasks_here.split("(")[0].split(",")[0]
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))


def first_host(nodes: str) -> str:
    """The first of Slurm's compressed host names: node03 of node[03-05,9]."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


GRACE_SECONDS = 10.0  # for the other processes to exit by themselves after one has failed
LOST = 69  # exit code of a process that exits because another one has
# Ctrl-C, kill, Slurm's warning before the time limit, a closed terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
PARENT = "EVEREST_PARENT"  # the process that started this one; the run ends with it
PARENT_SECONDS = 0.25  # our choice: between two looks at the parent


class RunEnd(NamedTuple):
    """How a run of several processes ended."""

    code: int  # exit code of the run
    errors: str  # text that is still to be shown


def run_processes(devices: Devices, command: Sequence[str]) -> RunEnd:
    """Run `command` once per process and wait.

    The first process has this one's terminal. The error output of the others is held back, and returned only
    if one of them fails by itself, so that an error appears once. Signals are forwarded.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # a free one
    environment = {
        **os.environ,
        "WORLD_SIZE": str(devices.processes),
        "LOCAL_WORLD_SIZE": str(devices.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        PARENT: str(os.getpid()),
        **visible_gpus(devices.ids),
    }
    if devices.kind == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices.processes)))
    with tempfile.TemporaryFile("w+") as errors_of_others:
        workers = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL if rank else None,
                stderr=errors_of_others if rank else None,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process only, which forwards it once
            )
            for rank in range(devices.processes)
        ]
        with _forward_signals(workers) as forwarded:
            failed = _wait(workers)
        errors_of_others.seek(0)
        errors = errors_of_others.read() if failed else ""
    if failed is None:
        return RunEnd(0, "")
    code = workers[failed].returncode
    if code >= 0:
        return RunEnd(code, errors)
    if -code in forwarded:
        return RunEnd(128 - code, "")  # stopped before a first save, or by a second signal
    name = signal.Signals(-code).name
    hint = ", most often because memory ran out" if -code == signal.SIGKILL else ""
    error = f"error: process {failed} of the run was killed by {name}{hint}"
    return RunEnd(EnvironmentProblem.exit_code, f"{error}; run the same command again to resume\n")


def end_with_parent() -> None:
    """Send this process a SIGTERM when the process named by PARENT is gone; a training then saves its state.

    For commands that a sweep starts, which may read videos for minutes before their first step.
    """

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    parent = os.environ.get(PARENT, "")
    if parent.isdecimal() and "RANK" not in os.environ:  # processes of one run look after each step
        threading.Thread(target=watch, args=(int(parent),), daemon=True).start()


def catch_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler for STOP_SIGNALS; returns those before, by signal.

    Only the main thread receives signals: in another thread, such as one of a notebook, none is installed. A
    SIGHUP that is ignored stays ignored: that is how `nohup` lets a command outlive its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    caught = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in caught}


@contextmanager
def _forward_signals(workers: Sequence[subprocess.Popen[str]]) -> Iterator[set[int]]:
    """Forward signals to the workers; yields the set of the signals received so far."""
    received: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        received.add(number)
        if number == signal.SIGHUP:
            leave_closed_terminal()
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    before = catch_stop_signals(forward)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[subprocess.Popen[str]]) -> int | None:
    """Wait for all; returns the rank that failed first, or None. After a failure the others are stopped.

    If the main process ends with the same code, it is rank 0, which has shown the error.
    """
    failed: int | None = None
    deadline = 0.0
    while True:
        codes = [worker.poll() for worker in workers]
        running = None in codes
        if failed is None:
            own = [rank for rank, code in enumerate(codes) if code not in (None, 0, LOST)]
            # A process that lost another one counts only after all have ended: the other's error comes first.
            lost = [rank for rank, code in enumerate(codes) if code == LOST and None not in codes]
            failed = next(iter(own or lost), None)
            deadline = time.monotonic() + GRACE_SECONDS
        elif running and time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        if not running:
            return 0 if failed is not None and codes[0] == codes[failed] else failed
        time.sleep(0.05)
