"""The processes of a command that uses several devices: each runs the same command again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from everest.system.launch import Devices, read_devices, run_processes
from everest.system.processes import is_launched


def start_processes(gpus: str, processes: int | None) -> Devices:
    """Return the devices of a run of one process. Several are started here, and their code ends this one."""
    if is_launched():
        return Devices(kind="cpu" if gpus == "cpu" else "cuda")
    devices = read_devices(gpus, processes)
    if devices.processes > 1:
        code, errors = run_processes(devices, [*this_program(), *sys.argv[1:]])
        typer.echo(errors, err=True, nl=False)
        raise typer.Exit(code)
    os.environ.update(devices.environment)
    return devices


def this_program() -> list[str]:
    """Return the words that start `everest` again, as this process was started."""
    # Only `python -m` searches the working directory for modules first.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return [sys.executable, *([] if by_module else ["-P"]), "-m", "everest_cli"]
