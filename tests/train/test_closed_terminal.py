"""A run outlives its terminal: it saves and ends as after SIGTERM, or goes on under nohup."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import TWO, wait_for_rows
from small_runs import metrics, small_recipe

from everest.system.run_folder import RunFolder

MANY = ["--set", "pretrain.epochs=400"]


def run_in_terminal(command: list[str], run: RunFolder, *, rows: int) -> int:
    """Start a command in a terminal, and close the terminal after some steps; returns the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 60
    while len(run.rows()) < rows:
        assert time.monotonic() < deadline, "the run did not get that far"
        try:
            os.read(terminal, 2**16)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    "options", [["--gpus", "cpu", "--set", "train.workers=1"], pytest.param(TWO, marks=pytest.mark.slow)]
)
def test_a_run_whose_terminal_is_closed_saves_and_ends(tmp_path: Path, clip_files: Path, options: list[str]):
    run = RunFolder(tmp_path / "run")
    recipe = small_recipe(tmp_path, clip_files)
    command = ["pretrain", "--recipe", str(recipe), "-o", str(run.path), *MANY, *options]
    code = run_in_terminal([sys.executable, "-m", "everest_cli", *command], run, rows=3)
    assert code == 128 + signal.SIGHUP
    last = len(run.rows())
    assert 3 <= last < 400
    assert (run.state / f"step-{last:09d}.safetensors").is_file()
    assert not (run.path / "running.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--gpus", "cpu"], TWO])
def test_under_nohup_a_run_goes_on(tmp_path: Path, clip_files: Path, options: list[str]):
    recipe = small_recipe(tmp_path, clip_files)
    command = ["pretrain", "--recipe", recipe, "-o", tmp_path / "run", *options]
    command = ["nohup", sys.executable, "-m", "everest_cli", *command, "--set", "pretrain.epochs=20"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as ended:
        wait_for_rows(tmp_path / "run", 2, ended)
        ended.send_signal(signal.SIGHUP)
    assert ended.returncode == 0
    assert len(metrics(tmp_path / "run")) == 20
