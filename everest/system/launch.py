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
    """Understand `auto`, a number of GPUs, their ids as `0,2` or `1,`, `cpu` or `mps`.

    Raises:
        RecipeError: anything else, or --processes with devices that fix their number.
        EnvironmentProblem: GPUs that are not there.
    """
    if gpus == "cpu":
        return Devices(kind="cpu", processes=processes or 1)
    if processes is not None:
        raise RecipeError("--processes goes with --gpus cpu; elsewhere there is one process a GPU")
    if gpus not in ("auto", "mps") and not all(part.strip().isdecimal() for part in _parts(gpus)):
        raise RecipeError(f"--gpus {gpus}: give auto, a number, ids such as 0,2 or 1, or cpu or mps")

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


def _parts(gpus: str) -> list[str]:
    return gpus.removesuffix(",").split(",")  # "1," is the GPU 1, "1" is one GPU


def _named_gpus(gpus: str, there: int) -> Devices:
    ids = tuple(int(part) for part in _parts(gpus))
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


def is_lost_peer(error: Exception) -> bool:
    """Whether torch.distributed tells by `error` that another process of the run is gone.

    Its stores and NCCL raise a DistError; gloo a plain RuntimeError, whose text names gloo's source file.
    """
    said = str(error)
    by_torch = "gloo" in said or any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return isinstance(error, RuntimeError) and by_torch and "onnection" in said


def adopt_slurm(environment: dict[str, str] | os._Environ[str]) -> None:
    """Give a task of `srun` the variables that torch.distributed reads."""
    # Of the step, not of the job: an sbatch script has the job's variables too, and is one process.
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
    """The first of Slurm's compressed host names: node[03-05,9] is node03."""
    head, bracket, rest = nodes.partition("[")
    if not bracket:
        return head.split(",")[0]
    if "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


class RunEnd(NamedTuple):
    """How a run of several processes ended."""

    code: int  # exit code of all
    said: str  # what is left to be shown of it


def run_processes(devices: Devices, command: Sequence[str]) -> RunEnd:
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
        with _passing_signals_on(workers) as passed_on:
            failed = _wait(workers)
        said_by_others.seek(0)
        said = said_by_others.read() if failed else ""
    if failed is None:
        return RunEnd(0, "")
    code = workers[failed].returncode
    if code >= 0:
        return RunEnd(code, said)
    if -code in passed_on:
        return RunEnd(128 - code, "")  # before there was anything to save, or the user insisted
    name = signal.Signals(-code).name
    hint = ", most often for want of memory" if -code == signal.SIGKILL else ""
    told = f"error: process {failed} of the run was killed by {name}{hint}"
    return RunEnd(EnvironmentProblem.exit_code, f"{told}; the same command goes on from what was saved\n")


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
    environment.update(visible_gpus(devices.ids))
    if devices.kind == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        threads = max(1, (os.cpu_count() or 1) // devices.processes)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def visible_gpus(ids: Sequence[int]) -> dict[str, str]:
    """The variable that shows a process these GPUs only, counted among those that are visible here."""
    if not ids:
        return {}
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else None  # numbers, or names such as GPU-8932f937
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[i].strip() if names else str(i) for i in ids)}


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
def _passing_signals_on(workers: Sequence[subprocess.Popen[str]]) -> Iterator[set[int]]:
    """Around the life of the workers; gives the signals that came."""
    came: set[int] = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.add(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield came
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
