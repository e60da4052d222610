"""Starts the processes of a run, one per device selected by --gpus and --processes.

The first process only watches the others: it forwards signals, and shows an error once.
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


class LostPeer(UserError):
    """Another process of the run has ended, so this one does, too."""

    exit_code = 69


def lost_peer(error: BaseException) -> LostPeer | None:
    """A LostPeer if an error of torch comes from the end of another process of the run, else None.

    NCCL and the store have errors of their own. Gloo raises a bare RuntimeError, as any computation does; but
    on a broken connection the next collective fails at once, and on an intact one it waits for the others.
    """
    import torch.distributed as dist

    is_several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not is_several or not isinstance(error, RuntimeError):
        return None
    is_lost = isinstance(error, dist.DistError)
    if type(error) is RuntimeError and dist.get_backend() == "gloo":
        started = time.monotonic()
        try:
            probe = dist.barrier(async_op=True)
            assert probe is not None
            probe.wait(timedelta(seconds=PROBE_SECONDS))
        except RuntimeError:
            is_lost = time.monotonic() - started < PROBE_SECONDS
    fix = "see its output, and run the same command again, on every machine"
    return LostPeer(f"another process of the run is gone; {fix}") if is_lost else None


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices that --gpus and --processes select on this machine."""

    kind: str  # cuda, mps or cpu
    processes: int = 1  # one for each GPU

    @property
    def environment(self) -> dict[str, str]:
        """The variable that restricts a process to these GPUs, the first visible ones."""
        return visible_gpus(range(self.processes)) if self.kind == "cuda" else {}


def read_devices(gpus: str, processes: int | None) -> Devices:
    """Parse `auto`, a number of GPUs, `cpu` or `mps`."""
    if gpus != "cpu" and processes is not None:
        raise RecipeError("--processes goes with --gpus cpu; elsewhere there is one process a GPU")
    if gpus == "cpu":
        return Devices(kind="cpu", processes=processes or 1)
    if gpus not in ("auto", "mps") and (not gpus.isdecimal() or not int(gpus)):
        raise RecipeError(
            f"--gpus {gpus}: give auto, a number from 1, cpu or mps; CUDA_VISIBLE_DEVICES names certain GPUs"
        )

    import torch

    available = torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    if gpus == "mps" and not has_mps:
        raise EnvironmentProblem("--gpus mps: this machine has no Apple GPU; use --gpus cpu")
    if gpus == "mps" or (gpus == "auto" and not available):
        return Devices(kind="mps" if has_mps else "cpu")
    wanted = available if gpus == "auto" else int(gpus)
    if wanted > available:
        raise EnvironmentProblem(f"--gpus {gpus}: this machine has {available}; try --gpus cpu")
    return Devices(kind="cuda", processes=wanted)


def visible_gpus(numbers: Sequence[int]) -> dict[str, str]:
    """The variable that restricts a process to these GPUs, numbered among those visible to this one."""
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else None  # numbers, or names such as GPU-8932f937
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[i].strip() if names else str(i) for i in numbers)}


def run_processes(devices: Devices, command: Sequence[str]) -> tuple[int, str]:
    """Run `command` once per process; returns the exit code of the run, and errors still to be shown.

    The first process has this one's terminal. The error output of the others is held back, and returned only
    if one of them fails by itself, so that an error appears once. Signals are forwarded.
    """
    with socket.socket() as probe:  # for a free port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = str(devices.processes)
    environment = {**os.environ, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **devices.environment}
    if devices.kind == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // devices.processes)))
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as held_back,
        SignalForwarder() as signals,
    ):
        workers = [
            signals.start(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL if rank else None,
                stderr=held_back if rank else None,
            )
            for rank in range(devices.processes)
        ]
        failed = _wait(workers)
        held_back.seek(0)
        errors = held_back.read() if failed else ""
    if failed is None:
        return 0, ""
    code = workers[failed].returncode
    if code == LostPeer.exit_code:  # of all that failed, and none has shown it
        return code, LOST
    if code >= 0:
        return code, errors
    if signals.received and -code in STOP_SIGNALS:
        return 128 - code, ""  # stopped before a first save, or by a second signal
    name = signal_name(code)
    hint = ", most often because memory ran out" if name == "SIGKILL" else ""
    error = f"error: process {failed} of the run was killed by {name}{hint}"
    return EnvironmentProblem.exit_code, f"{error}; run the same command again to resume\n"


def _wait(workers: Sequence[subprocess.Popen[Any]]) -> int | None:
    """Wait for all; after a failure, stop the others. Returns the rank that failed first, or None.

    A process that lost another one counts only after all have ended: the other's error comes first. If the
    main process ends with the same code, it is rank 0, which has shown the error.
    """
    failed: int | None = None
    deadline = math.inf
    while None in (codes := [worker.poll() for worker in workers]):
        faults = [rank for rank, code in enumerate(codes) if code not in (None, 0, LostPeer.exit_code)]
        if failed is None and faults:
            failed = faults[0]
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    if failed is None:
        ranks = (rank for rank, code in enumerate(codes) if code)
        failed = min(ranks, key=lambda rank: codes[rank] == LostPeer.exit_code, default=None)
    return 0 if failed is not None and codes[0] == codes[failed] else failed
