"""Starts the processes of a run, one per device selected by --gpus and --processes.

The first process only watches the others: it forwards signals, and shows an error once. torch's launcher
(torch.distributed.elastic) is not used: it stops all processes as soon as one ends, so that an error of code
3 ends with another code; it also signals the programs that a process has started, such as a tracker's; and
if it is killed, the run goes on without it.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from everest.errors import EnvironmentProblem, RecipeError, UserError
from everest.system.processes import num_cores
from everest.system.signals import GRACE_SECONDS, STOP_SIGNALS, SignalForwarder, signal_name

PROBE_SECONDS: Final = 2.0  # heuristic: a collective over a broken connection fails in milliseconds
LOST: Final = "error: the processes of the run lost their connections; run the same command again to resume\n"
NOT_SAVED: Final = "stopped without saving; the same command resumes from the last save, or starts again\n"


class LostPeer(UserError):
    """Another process of the run has ended, so this process ends."""

    exit_code = 69


def find_lost_peer(error: BaseException) -> LostPeer | None:
    """Return a LostPeer if another process of the run has ended and so caused an error of torch, else None.

    NCCL and the store have specific errors. Gloo raises a plain RuntimeError, as any computation does; but on
    a broken connection the next collective fails at once, and on an intact connection it waits.
    """
    import torch.distributed as dist

    has_peers = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not has_peers or not isinstance(error, RuntimeError):
        return None
    is_lost = isinstance(error, dist.DistError)
    if type(error) is RuntimeError and dist.get_backend() == "gloo":
        start_time = time.monotonic()
        try:
            probe = dist.barrier(async_op=True)
            assert probe is not None
            probe.wait(timedelta(seconds=PROBE_SECONDS))
        except RuntimeError:
            is_lost = time.monotonic() - start_time < PROBE_SECONDS
    fix = "see its output, and run the same command again, on every machine"
    return LostPeer(f"another process of the run is gone; {fix}") if is_lost else None


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices that --gpus and --processes select on this machine."""

    type: str  # cuda, mps or cpu
    num_processes: int = 1  # one process for each GPU

    @property
    def environment(self) -> dict[str, str]:
        """The variable that restricts a process to the selected GPUs, the first of the visible GPUs."""
        return visible_gpus(range(self.num_processes)) if self.type == "cuda" else {}


def read_devices(gpus: str, num_processes: int | None) -> Devices:
    """Parse `auto`, a number of GPUs, `cpu` or `mps`."""
    if gpus != "cpu" and num_processes is not None:
        raise RecipeError("--processes goes with --gpus cpu; elsewhere there is one process a GPU")
    if gpus == "cpu":
        return Devices(type="cpu", num_processes=num_processes or 1)
    if gpus not in ("auto", "mps") and (not gpus.isdecimal() or not int(gpus)):
        raise RecipeError(
            f"--gpus {gpus}: give auto, a number from 1, cpu or mps; CUDA_VISIBLE_DEVICES names certain GPUs"
        )

    import torch

    num_available = torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    if gpus == "mps" and not has_mps:
        raise EnvironmentProblem("--gpus mps: this machine has no Apple GPU; use --gpus cpu")
    if gpus == "mps" or (gpus == "auto" and not num_available):
        return Devices(type="mps" if has_mps else "cpu")
    num_gpus = num_available if gpus == "auto" else int(gpus)
    if num_gpus > num_available:
        raise EnvironmentProblem(f"--gpus {gpus}: this machine has {num_available}; try --gpus cpu")
    return Devices(type="cuda", num_processes=num_gpus)


def visible_gpus(indices: Sequence[int]) -> dict[str, str]:
    """The variable that restricts a process to GPUs, by their indices among this process's visible GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None  # numbers, or names such as GPU-8932f937
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[i].strip() if names else str(i) for i in indices)}


def run_processes(devices: Devices, command: Sequence[str]) -> tuple[int, str]:
    """Run `command` once per process; return the run's exit code and the errors not shown yet.

    The first process gets this process's terminal. The error output of the others is held back, and returned
    only if one of them fails by itself, so that an error appears once. Signals are forwarded.
    """
    with socket.socket() as probe:  # finds a free port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    num_processes = str(devices.num_processes)
    environment = {**os.environ, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **devices.environment}
    if devices.type == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // devices.num_processes)))
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as error_output,
        SignalForwarder() as signals,
    ):
        workers = [
            signals.start(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL if rank else None,
                stderr=error_output if rank else None,
            )
            for rank in range(devices.num_processes)
        ]
        failed_rank = _wait_for_workers(workers)
        error_output.seek(0)
        errors = error_output.read() if failed_rank else ""
    if failed_rank is None:
        return 0, ""
    code = workers[failed_rank].returncode
    if code == LostPeer.exit_code:  # all failed because of a peer, so none has shown an error
        return code, LOST
    if code >= 0:
        return code, errors
    if signals.received and -code in STOP_SIGNALS:
        return 128 - code, NOT_SAVED  # killed before the first save, or by a second signal
    name = signal_name(code)
    hint = ", most often because memory ran out" if name == "SIGKILL" else ""
    error = f"error: process {failed_rank} of the run was killed by {name}{hint}"
    return EnvironmentProblem.exit_code, f"{error}; run the same command again to resume\n"


def _wait_for_workers(workers: Sequence[subprocess.Popen[Any]]) -> int | None:
    """Wait for all workers; after a failure, stop the others. Return the rank that failed first, or None.

    A process that lost a peer counts only after all have ended, because the peer's error comes first. If the
    main process ends with the same code, the rank is 0, as this process has shown the error.
    """
    failed_rank: int | None = None
    deadline = math.inf
    while None in (codes := [worker.poll() for worker in workers]):
        failed_ranks = [rank for rank, code in enumerate(codes) if code not in (None, 0, LostPeer.exit_code)]
        if failed_rank is None and failed_ranks:
            failed_rank = failed_ranks[0]
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    if failed_rank is None:
        ranks = (rank for rank, code in enumerate(codes) if code)
        failed_rank = min(ranks, key=lambda rank: codes[rank] == LostPeer.exit_code, default=None)
    return 0 if failed_rank is not None and codes[0] == codes[failed_rank] else failed_rank
