"""Runs commands on GPUs that compute nothing, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
from device_build import HERE, IN_CHILD, Device

ROOT = HERE.parents[1]
TORCH_WARNING = "Warning: called a synchronizing CUDA operation"  # of threads that are not Python's


@dataclass(frozen=True)
class Step:
    """What one process did between two updates of the weights."""

    waits: list[str]  # functions of everest in which the host waited for the device, in order
    counts: dict[str, int]  # of kernels, copies, collectives: see device.h


@dataclass(frozen=True)
class Process:
    """What one process of a command did on the device."""

    rank: int  # -1: not started by a launcher
    waits: dict[str, int]
    lines: dict[str, int]  # the waits, by file and line
    steps: list[Step]
    counts: dict[str, int]
    peak_bytes: int  # by torch's allocator


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    processes: list[Process] = field(default_factory=list)  # those that used the device, by rank

    @property
    def step(self) -> Step:
        """The fourth step of the first process: everything is set up, and nothing is saved."""
        return self.processes[0].steps[3]


def run_command(
    device: Device,
    command: list[str],
    *,
    gpus: int = 1,
    timeout: float = 300,
    extra: dict[str, str] | None = None,
) -> Ended:
    """Run a command of Python on the device, and collect what its processes record.

    Args:
        command: arguments of the interpreter, such as `-m everest_cli pretrain`.
        extra: further variables of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(IN_CHILD), str(ROOT)]
        environment = {
            **os.environ,
            **device.environment,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "FAKE_CUDA_GPUS": str(gpus),
            "FAKE_CUDA_REPORT": folder,
            "FAKE_CUDA_EXCHANGE": folder,
            **(extra or {}),
        }
        began = time.monotonic()
        started = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=PIPE, stderr=PIPE, text=True
        )
        try:
            stdout, stderr = started.communicate(timeout=timeout)
        finally:
            _kill(started)
        seconds = time.monotonic() - began
        reports = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    processes = sorted((_process(report) for report in reports), key=lambda process: process.rank)
    used = [process for process in processes if process.counts["reserved_bytes_peak"]]
    lines = [line for line in stderr.splitlines(keepends=True) if TORCH_WARNING not in line]
    return Ended(started.returncode, stdout, "".join(lines), seconds, used)


def run_everest(device: Device, *arguments: object, **options: Any) -> Ended:
    """Run a command of everest on the device."""
    return run_command(device, ["-m", "everest_cli", *map(str, arguments)], **options)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process that has not ended by itself, and those that it has started."""
    if process.poll() is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.communicate()


def _process(report: dict[str, Any]) -> Process:
    return Process(**{**report, "steps": [Step(**step) for step in report["steps"]]})
