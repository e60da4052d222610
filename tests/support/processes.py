"""The stages on real files, run as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from everest.system.run_folder import RunFolder


def wait_for_rows(folder: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(RunFolder(folder).rows()) < rows:
        assert time.monotonic() < deadline, "the run did not get that far"
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.01)


def stop_after(
    recipe: Path, command: list[str], folder: Path, how: signal.Signals, *, rows: int, group: bool = False
) -> int:
    """Start a command in a process of its own and send it a signal once it has logged `rows` rows."""
    process = start(*command, "--recipe", recipe, "-o", folder, group=group)
    wait_for_rows(folder, rows, process)
    if group:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    return process.wait(timeout=60)


TWO = ["--gpus", "cpu", "--processes", "2"]


def everest(*arguments: object, code: int = 0, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "everest_cli", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == code, ended.stderr
    return ended


def start(*arguments: object, group: bool = True) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "everest_cli", *map(str, arguments)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=group)


def wait_until_nobody_runs(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while (folder / "running.json").exists():
        assert time.monotonic() < deadline, "a process outlived the one that watched it"
        time.sleep(0.05)
