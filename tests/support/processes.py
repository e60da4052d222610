"""The stages on real files, run as a user runs them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from small_runs import called, logged, same_run

from everest.system.locks import is_running
from everest.system.run_folder import RunFolder


def wait_until(is_reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300  # of a machine on which other processes run
    while not is_reached():
        assert process.poll() is None, "the command ended too early"
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise AssertionError("the command did not get that far")
        time.sleep(0.005)


def wait_for_rows(folder: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: len(RunFolder(folder).rows()) >= rows, process)


def kill_when(is_reached: Callable[[], bool], *arguments: object) -> None:
    """Start a command in a process of its own, and kill it at a moment at which it is not done."""
    process = start(*arguments, group=False)
    wait_until(is_reached, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL


# A command that ends like `kill -9` once so many results are kept; each is written at once.
KILLED_AFTER = """
import os, signal, sys
from everest.system import parts
from everest_cli.main import main
add, number, kept = parts.Parts.add, int(sys.argv.pop(1)), 0
parts.MAX_SECONDS = 0.0
def add_or_die(self, unit, results, *values, **options):
    global kept
    add(self, unit, results, *values, **options)
    kept += len(results)
    if kept >= number:
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.add = add_or_die
main()
"""


def kill_after(number: int, command: list[object]) -> None:
    """Run a command that keeps its results in a folder of parts; it is killed after so many."""
    program = [sys.executable, "-c", KILLED_AFTER, str(number), *map(str, command)]
    assert subprocess.run(program, capture_output=True).returncode == -signal.SIGKILL


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


def assert_resumes_after_a_kill(recipe: Path, command: list[str], folder: Path, *, rows: int) -> None:
    """`folder/parts`, killed after some rows and resumed, equals the undisturbed `folder/whole`."""
    whole, parts = folder / "whole", folder / "parts"
    called(*command, "--recipe", recipe, "-o", whole)
    assert stop_after(recipe, command, parts, signal.SIGKILL, rows=rows) == -signal.SIGKILL
    assert len(logged(parts)) < len(logged(whole))
    called(*command, "--recipe", recipe, "-o", parts)
    assert same_run(parts, whole)


TWO = ["--gpus", "cpu", "--processes", "2"]
# Fine-tuning without draws of a pass: any number of processes and passes trains the same.
UNMIXED = ("finetune.mixup=0", "finetune.cutmix=0", "finetune.erasing=0", "finetune.drop_path=0")


def everest(*arguments: object, code: int = 0, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "everest_cli", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == code, ended.stderr
    return ended


def start(*arguments: object, group: bool = True) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "everest_cli", *map(str, arguments)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=group)


def killed_run_of_two(command: list[object], folder: Path, *, rows: int) -> tuple[Path, Path]:
    """Train in two processes twice: undisturbed, and killed after some rows and resumed; the run folders."""
    whole, parts = folder / "whole", folder / "parts"
    everest(*command, *TWO, "-o", whole)
    process = start(*command, *TWO, "-o", parts)
    wait_for_rows(parts, rows, process)
    os.killpg(process.pid, signal.SIGKILL)  # the watching process; the two notice that it is gone
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while is_running(parts):
        assert time.monotonic() < deadline, "a process outlived the one that watched it"
        time.sleep(0.05)
    everest(*command, *TWO, "-o", parts)
    return whole, parts
