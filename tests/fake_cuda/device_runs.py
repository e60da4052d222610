"""Runs commands on a GPU that computes nothing, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
from device_build import HERE, IN_CHILD, Device

ROOT = HERE.parents[1]
TORCH_WARNING = "Warning: called a synchronizing CUDA operation"  # of threads that are not Python's


@dataclass(frozen=True)
class Step:
    """What a process did between two updates of the weights."""

    waits: list[str]  # functions of everest in which the host waited for the device, in order
    counts: dict[str, int]  # of kernels, copies and waits: see device.c


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    steps: list[Step]  # of its process that used the device
    counts: dict[str, int]

    @property
    def step(self) -> Step:
        """The fourth step: everything is set up, and nothing is saved."""
        return self.steps[3]


def run_command(
    device: Device, command: list[str], *, timeout: float = 300, extra: dict[str, str] | None = None
) -> Ended:
    """Run a command of Python on the device, and collect what its process records.

    Args:
        command: arguments of the interpreter, such as `-m everest_cli pretrain`.
        extra: further variables of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **device.environment,
            "PYTHONPATH": os.pathsep.join([str(IN_CHILD), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "FAKE_CUDA_REPORT": folder,
            **(extra or {}),
        }
        started = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=PIPE, stderr=PIPE, text=True
        )
        try:
            stdout, stderr = started.communicate(timeout=timeout)
        finally:
            if started.poll() is None:
                for each in [*psutil.Process(started.pid).children(recursive=True), started]:
                    each.kill()
                started.communicate()
        reports = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    used = max(reports, key=lambda report: report["counts"]["reserved_bytes_peak"])
    lines = [line for line in stderr.splitlines(keepends=True) if TORCH_WARNING not in line]
    steps = [Step(**step) for step in used["steps"]]
    return Ended(started.returncode, stdout, "".join(lines), steps, used["counts"])


def run_everest(device: Device, *arguments: object, **options: Any) -> Ended:
    """Run a command of everest on the device."""
    return run_command(device, ["-m", "everest_cli", *map(str, arguments)], **options)
