"""Runs killed at any moment, or without their terminal: the same command resumes, no rubbish is left."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_at_change import ran_until
from kills import kill_runs
from processes import TWO, wait_for_rows
from small_runs import called, equal, metrics, refused, weights

from everest.system.files import is_unfinished
from everest.system.run_folder import RunFolder


def rubbish(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if is_unfinished(path.name) or path.name.startswith(".tmp")]


@pytest.fixture
def command(tmp_path: Path, recipe: Path, autoencoder_run: Path) -> list[object]:
    return ["pretrain", "--recipe", recipe, "-q", "-o", tmp_path / "run"]


@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_the_beginnings_of_a_run_are_no_run(command, tmp_path: Path, autoencoder_run: Path, files: int):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "state" / ".step-000000001.safetensors.part").write_text("begun")
    left = [".training.lock", ".env.json.part", "env.json"]
    for name in left[:files]:
        (run / name).write_text((autoencoder_run / "env.json").read_text())
    called(*command)
    assert len(RunFolder(run).rows()) == 3
    assert rubbish(run) == []


@pytest.mark.slow
def test_a_run_killed_before_its_recipe_is_written_is_started_again(command, tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    change = 0
    while not run.is_run():  # each call finds what the one before has left
        change += 1
        assert not ran_until(change, command, run.path)
    assert change > 5
    called(*command)
    assert len(run.rows()) == 3
    assert rubbish(run.path) == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(command, tmp_path, autoencoder_run, options):
    run, change, ended = tmp_path / "run", 0, False
    while not ended:
        change += 1 if change < 8 and not options else 7  # later changes repeat themselves from step to step
        if options:
            called(*command, "--overwrite")
        ended = ran_until(change, [*command, *options], run)
        called(*command, *options)
        assert equal(weights(run), weights(autoencoder_run))
        assert rubbish(run) == []
        if not options:
            for path in sorted(run.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    assert change > 30


@pytest.mark.parametrize(
    ("name", "text"),
    [("notes.txt", "precious"), ("env.json", '{"of": "something else"}'), ("state/mine.txt", "precious")],
)
def test_a_folder_with_other_files_is_still_refused(command, tmp_path: Path, name: str, text: str):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (tmp_path / "run" / ".env.json.part").write_text("begun")
    assert "is not a run folder" in refused(*command, code=2)
    assert file.read_text() == text


def test_unfinished_files_of_a_killed_save_are_removed_and_no_others(command, autoencoder_run, tmp_path):
    run = Path(shutil.copytree(autoencoder_run, tmp_path / "run"))
    ours = (run / "model.safetensors").read_bytes()
    kept = {run / ".tmpAbCd12": b"of another program", run / ".notes.part": b"mine", run / ".tmpl": ours}
    left = [run / ".model.safetensors.part", run / "state" / ".step-000000002.safetensors.part"]
    for path in (*kept, *left):
        path.write_bytes(kept.get(path, ours[: len(ours) // 2]))
    called(*command)
    assert [path for path in left if path.exists()] == []
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.slow
def test_killed_runs_are_resumed_to_the_same_bits(tmp_path: Path):
    found = kill_runs(tmp_path, kills=8, seed=0, processes=[1, 2], jobs=1)
    assert found["kills"] >= 8
    assert (found["unequal"], found["refused"], found["tracebacks"]) == (0, [], 0)


MANY = ["--set", "pretrain.epochs=400"]


def run_in_terminal(command: list[str], run: RunFolder, *, rows: int) -> int:
    """Start a command in a terminal, and close the terminal after some steps; returns the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.execv(command[0], command)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 300  # of a machine on which other processes run
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
def test_under_nohup_a_run_goes_on(tmp_path: Path, recipe: Path):
    command = ["pretrain", "--recipe", recipe, "-o", tmp_path / "run", *TWO]
    command = ["nohup", sys.executable, "-m", "everest_cli", *command, "--set", "pretrain.epochs=20"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(list(map(str, command)), stdout=quiet, stderr=quiet) as ended:
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
