"""everest where the system has no POSIX modules, no fork and only the signals of Windows."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics, run, same_run, weights

from everest.profiling.doctor import check_step
from everest.system.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
IMITATION = ROOT / "tests" / "support" / "as_on_windows"
ONE_PLACE = ROOT / "everest" / "system" / "posix.py"
# Of a folder that only Linux has; where the system is asked for first.
KNOWN = {("everest/data/cache.py", "os.getuid"), ("everest/system/signals.py", "start_new_session")}
ONLY_POSIX = re.compile(
    r"\b(?:import (?:fcntl|grp|pty|pwd|resource|syslog|termios|tty)|start_new_session|preexec_fn"
    r"|signal\.SIG(?!INT\b|TERM\b|_IGN\b|_DFL\b)\w+|signal\.(?:alarm|setitimer|pthread_kill)"
    r"|os\.(?:fork|getuid|killpg|mkfifo|sched_getaffinity|setsid|statvfs|sysconf|uname))\b"
)


def test_only_known_places_ask_for_what_only_posix_has():
    files = [
        path for top in ("everest", "everest_cli", "everest_demo") for path in (ROOT / top).rglob("*.py")
    ]
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in ONLY_POSIX.findall(path.read_text("utf-8"))
        if path != ONE_PLACE
    }
    assert found == KNOWN
    asked = set(ONLY_POSIX.findall(ONE_PLACE.read_text("utf-8")))
    assert {"import resource", "os.sched_getaffinity"} <= asked


def test_doctor_trains_for_a_step_on_a_device_that_is_unusual():
    assert check_step("CPU", torch.device("cpu")).state == "ok"
    if not torch.backends.mps.is_available():
        absent = check_step("MPS", torch.device("mps"))
        assert (absent.state, absent.fix) == (
            "warning",
            "set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --gpus cpu",
        )


def environment() -> dict[str, str]:
    paths = [str(IMITATION), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, *map(str, words)], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == code, ended.stderr
    return ended


def imitated(*words: object, code: int = 0) -> str:
    """What a command prints under the imitation; of one that fails its error."""
    ended = python("-m", "everest_cli", *words, code=code)
    assert "Traceback" not in ended.stderr
    return ended.stderr if code else ended.stdout


IMPORTS = """
import importlib, pkgutil
for package in map(importlib.import_module, ("everest", "everest_cli", "everest_demo")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from everest.system.posix import IS_POSIX
from everest.system.signals import STOP_SIGNALS
assert not IS_POSIX and len(STOP_SIGNALS) == 3, STOP_SIGNALS
"""
REPLACED = """
import pathlib, threading, time
from everest.errors import EnvironmentProblem
from everest.system.files import write_text
path = pathlib.Path("file.txt")
write_text(path, "first")
reader = path.open()
threading.Timer(0.5, reader.close).start()
write_text(path, "second")
assert reader.closed and path.read_text() == "second"
with path.open():
    try:
        write_text(path, "third")
    except EnvironmentProblem as error:
        assert "another program has it open" in str(error), error
    else:
        raise AssertionError
assert path.read_text() == "second"
"""


@pytest.mark.slow
def test_all_modules_are_imported():
    python("-c", IMPORTS)


@pytest.mark.slow
def test_a_file_that_is_open_is_replaced_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    python("-c", REPLACED)


@pytest.mark.slow
def test_a_run_with_spawned_readers_is_the_same_to_the_bit(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "--init", "none", "--gpus", "cpu", "-q", "-o"]
    run("finetune", *options, tmp_path / "here")
    imitated("finetune", *options, tmp_path / "there", "--set", "train.workers=2")
    assert same_run(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
def test_what_reads_and_writes_files_leaves_nothing(classifier_run: Path, clip_files: Path, tmp_path: Path):
    features = tmp_path / "features.safetensors"
    run("extract", clip_files, "-c", classifier_run, "-o", tmp_path / "here.safetensors", "-q")
    imitated("extract", clip_files, "-c", classifier_run, "-o", features, "-q")
    expected, found = load_file(tmp_path / "here.safetensors"), load_file(features)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [features.name, "here.safetensors"]
    imitated("eval", "-c", classifier_run, "-q", "--report", tmp_path / "report", "--json")
    imitated("timeline", clip_files / "clip0.mp4", "-c", classifier_run, "-o", tmp_path / "t.csv")
    imitated("prepare", "check", clip_files, "-q")
    imitated("prepare", "encode", clip_files / "train.csv", "-o", tmp_path / "encoded", "-q")
    imitated("prepare", "windows", clip_files, "--seconds", 1, "-o", tmp_path / "windows.csv", "-q")


@pytest.mark.slow
def test_several_processes_and_files_in_memory_are_refused(recipe: Path, tmp_path: Path):
    options = ["finetune", "--recipe", recipe, "--init", "none", "-o", tmp_path / "run", "--gpus", "cpu"]
    text = imitated(*options, "--processes", 2, code=5)
    assert text == "error: a run of 2 processes needs Linux or macOS; give --processes 1\n"


@pytest.mark.slow
def test_ctrl_break_saves_a_run_and_a_job_of_a_sweep(recipe: Path, tmp_path: Path):
    long = ["--set", "finetune.epochs=300", "--gpus", "cpu"]
    whole = ["--recipe", recipe, "--init", "none", *long]
    ways = {
        "run": ["finetune", *whole, "-o", tmp_path / "run"],
        "sweep": [
            *("sweep", recipe, "--over", "finetune.mixup=0.8", "--stages", "finetune,eval", *long),
            *("--seeds", "1", "-o", tmp_path / "sweep"),
        ],
    }
    for name, words in ways.items():
        process = subprocess.Popen(
            [sys.executable, "-m", "everest_cli", *map(str, words)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not any(RunFolder(path.parent).rows() for path in (tmp_path / name).rglob("metrics.jsonl")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR2)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + signal.SIGUSR2, error
        (state,) = (tmp_path / name).rglob("state")
        assert any(state.iterdir())
    assert metrics(tmp_path / "run")
    assert weights(tmp_path / "run")
