"""A run outlives its terminal: it saves and ends as after SIGTERM, or goes on under nohup."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import TWO, wait_for_rows
from small_runs import metrics

from everest.system.run_folder import RunFolder

MANY = ["--set", "pretrain.epochs=400"]


def run_in_terminal(command: list[str], run: RunFolder, *, rows: int) -> int:
    """Start a command in a terminal, and close the terminal after some steps; returns the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
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
def test_a_run_whose_terminal_is_closed_saves_and_ends(tmp_path: Path, recipe: Path, options: list[str]):
    run = RunFolder(tmp_path / "run")
    command = ["pretrain", "--recipe", str(recipe), "-o", str(run.path), *MANY, *options]
    code = run_in_terminal([sys.executable, "-m", "everest_cli", *command], run, rows=3)
    assert code == 128 + signal.SIGHUP
    last = len(run.rows())
    assert 3 <= last < 400
    assert (run.state / f"step-{last:09d}.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--gpus", "cpu"], TWO])
def test_under_nohup_a_run_goes_on(tmp_path: Path, recipe: Path, options: list[str]):
    command = ["pretrain", "--recipe", recipe, "-o", tmp_path / "run", *options]
    command = ["nohup", sys.executable, "-m", "everest_cli", *command, "--set", "pretrain.epochs=20"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as ended:
        wait_for_rows(tmp_path / "run", 2, ended)
        ended.send_signal(signal.SIGHUP)
    assert ended.returncode == 0
    assert len(metrics(tmp_path / "run")) == 20


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_messages(tmp_path: Path, recipe: Path):
    """A pipe that is closed after the first line, and a full disk."""
    options = ["--recipe", recipe, "--set", "pretrain.epochs=20"]
    for name, where in (("pipe", "2>&1 >/dev/null | head -1"), ("full", "2>/dev/full")):
        command = [sys.executable, "-m", "everest_cli", "pretrain", *options, "-o", tmp_path / name]
        line = f"({' '.join(map(str, command))}; echo $? > {tmp_path / name}.code) {where}"
        subprocess.run(["bash", "-c", line], check=True, capture_output=True, timeout=120)
        assert (tmp_path / f"{name}.code").read_text() == "0\n"
        assert len(metrics(tmp_path / name)) == 20
