"""Processes of a run: one a device is started here, unless torchrun, accelerate or Slurm has done so.

A run of several processes is the same command several times; each copy learns its part from the environment
variables that torch.distributed and Accelerate read. The first one, `everest` itself, only watches.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, NamedTuple

from everest.errors import EnvironmentProblem, RecipeError

GRACE_SECONDS = 10.0  # for the others to end by themselves once one has failed
LOST = 69  # exit code of a process that ends because another one has
PARENT = "EVEREST_PARENT"  # process that started this one; when it is gone, so is the run


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What --gpus and --processes mean on this machine."""

    kind: str  # cuda, mps or cpu
    processes: int = 1
    ids: tuple[int, ...] = ()  # of the GPUs; empty: as they come


def read_devices(gpus: str, processes: int | None) -> Devices:
    """Understand `auto`, a number of GPUs, their ids as `0,2`, `cpu` or `mps`.

    Raises:
        RecipeError: anything else, or --processes with devices that fix their number.
        EnvironmentProblem: GPUs that are not there.
    """
    if gpus == "cpu":
        return Devices(kind="cpu", processes=processes or 1)
    if processes is not None:
        raise RecipeError("--processes goes with --gpus cpu; elsewhere there is one process a GPU")
    if gpus not in ("auto", "mps") and not all(part.strip().isdecimal() for part in gpus.split(",")):
        raise RecipeError(f"--gpus {gpus}: give auto, a number, ids such as 0,2, cpu or mps")

    import torch

    there = torch.cuda.device_count()
    if gpus == "mps" or (gpus == "auto" and not there):
        if torch.backends.mps.is_available():
            return Devices(kind="mps")
        if gpus == "mps":
            raise EnvironmentProblem("--gpus mps: this machine has no Apple GPU; use --gpus cpu")
        return Devices(kind="cpu")
    if gpus == "auto":
        return Devices(kind="cuda", processes=there)
    return _named_gpus(gpus, there)


def _named_gpus(gpus: str, there: int) -> Devices:
    ids = tuple(int(part) for part in gpus.split(","))
    if len(ids) == 1 and "," not in gpus:
        ids = tuple(range(ids[0]))
    if not ids or len(set(ids)) < len(ids):
        raise RecipeError(f"--gpus {gpus}: give a number from 1, or ids that differ")
    missing = [i for i in ids if i >= there]
    if missing:
        raise EnvironmentProblem(
            f"--gpus {gpus}: no GPU {missing[0]}, this machine has {there}; try --gpus cpu"
        )
    return Devices(kind="cuda", processes=len(ids), ids=ids)


def is_launched() -> bool:
    """Whether this process is one of several that something else has started."""
    adopt_slurm(os.environ)
    return "RANK" in os.environ


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def adopt_slurm(environment: dict[str, str] | os._Environ[str]) -> None:
    """Give a task of `srun` the variables that torch.distributed reads."""
    if (
        "RANK" in environment
        or int(environment.get("SLURM_NTASKS", "1")) < 2
        or "SLURM_PROCID" not in environment
    ):
        return
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    tasks_here = environment.get("SLURM_TASKS_PER_NODE", environment["SLURM_NTASKS"])  # such as 8(x2)
    environment["LOCAL_WORLD_SIZE"] = tasks_here.split("(")[0].split(",")[0]
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))


def first_host(nodes: str) -> str:
    """The first of Slurm's compressed host names: node[03-05,9] is node03."""
    head, bracket, rest = nodes.partition("[")
    if not bracket:
        return head.split(",")[0]
    if "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


class Ended(NamedTuple):
    """How a run of several processes ended."""

    code: int  # exit code of all
    said: str  # what is left to be shown of it


def run_processes(devices: Devices, command: Sequence[str]) -> Ended:
    """Run `command` once a process and watch.

    The first process has this one's terminal. What the others say is kept back, and wanted only if one of
    them fails by itself, so that an error appears once. Signals are passed on.
    """
    port = _free_port()
    with tempfile.TemporaryFile("w+") as said_by_others:
        workers = [
            _start(command, _environment(devices, rank, port), quiet=said_by_others if rank else None)
            for rank in range(devices.processes)
        ]
        with _passing_signals_on(workers):
            failed = _wait(workers)
        said_by_others.seek(0)
        said = said_by_others.read() if failed else ""
    if failed is None:
        return Ended(0, "")
    code = workers[failed].returncode
    if code >= 0:
        return Ended(code, said)
    name = signal.Signals(-code).name
    cause = f"process {failed} of the run was killed by {name}, most often for want of memory"
    told = f"error: {cause}; the same command goes on from what was saved\n"
    return Ended(EnvironmentProblem.exit_code, told)


def _environment(devices: Devices, rank: int, port: int) -> dict[str, str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(devices.processes),
        "LOCAL_WORLD_SIZE": str(devices.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        PARENT: str(os.getpid()),
    }
    if devices.ids:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices.ids))
    if devices.kind == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        threads = max(1, (os.cpu_count() or 1) // devices.processes)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _start(
    command: Sequence[str], environment: Mapping[str, str], *, quiet: IO[str] | None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment,
        stdout=None if quiet is None else subprocess.DEVNULL,
        stderr=quiet,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
    )


@contextmanager
def _passing_signals_on(workers: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[subprocess.Popen[str]]) -> int | None:
    """Wait for all; returns which failed first, None when none did. One failure ends the others."""
    failed: int | None = None
    deadline = 0.0
    while any(worker.poll() is None for worker in workers):
        if failed is None:
            failed = _first_failure(workers)
            deadline = time.monotonic() + GRACE_SECONDS
        elif time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    return failed if failed is not None else _first_failure(workers)


def _first_failure(workers: Sequence[subprocess.Popen[str]]) -> int | None:
    """A process that ended by an error of its own; the main one, which has told it, before the others."""
    codes = [worker.returncode for worker in workers]
    own = [rank for rank, code in enumerate(codes) if code not in (None, 0, LOST)]
    # Whoever lost another one waits for that one's error to be seen.
    lost = [rank for rank, code in enumerate(codes) if code == LOST and None not in codes]
    return next(iter(own or lost), None)
