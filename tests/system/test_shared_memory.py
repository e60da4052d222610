"""Runs where shared memory is as small as in a container, in a mount namespace with a /dev/shm of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import small_recipe

REMEDY = "start the container with --shm-size=8g or --ipc=host, or set train.workers=0"


def with_shared(megabytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of Python with so much shared memory."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting a small /dev/shm is not allowed here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """Clips of 2.4 MB, read by two workers: five batches of two are 24 MB."""
    changes = {"frames: 4, size: 32": "frames: 16, size: 224", "[2, 8, 8]": "[2, 16, 16]"}
    return small_recipe(tmp_path, clip_files, {**changes, "workers: 0": "workers: 2"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["pretrain"], ["pretrain", "--dry-run"], ["finetune", "--init", "none"]], ids=" ".join
)
def test_a_run_that_does_not_fit_is_refused_before_it_starts(command, recipe, tmp_path):
    arguments = ["-m", "everest_cli", *command, "--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu"]
    ended = with_shared(5, *arguments, "-q")
    assert ended.returncode == 5
    error = ended.stderr.splitlines()[-1]
    needed = "the batches of the workers need 24 MB, 5 MB of /dev/shm are free"
    assert error == f"error: too little shared memory ({needed}); {REMEDY}"
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()
    if "--dry-run" in command:
        assert with_shared(5, *arguments, "-q", "--set", "train.workers=0").returncode == 0
        assert with_shared(64, *arguments, "-q").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("megabytes", "fewer"), [(5, "starts 0 of"), (256, "")])
def test_auto_starts_the_workers_whose_batches_fit(megabytes: int, fewer: str, recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu", "--set", "train.workers=auto"]
    ended = with_shared(megabytes, "-m", "everest_cli", "pretrain", *options, "--set", "pretrain.epochs=1")
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "--shm-size=8g" in line] or [""]
    assert fewer in line
    assert bool(line) == bool(fewer)


@pytest.mark.slow
def test_the_doctor_finds_a_container_without_shared_memory():
    findings = json.loads(with_shared(64, "-m", "everest_cli", "doctor", "--json").stdout)["findings"]
    (found,) = [finding for finding in findings if finding["name"] == "shared memory"]
    assert (found["state"], found["fix"]) == ("warning", REMEDY)
    assert found["found"] == "0.06 GiB free"


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_reported_with_its_fix(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--gpus", "cpu", "-q"]
    command = ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", sys.executable, "-m", "everest_cli", "pretrain"]
    ended = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 5
    assert ended.stderr.endswith("raise `ulimit -f`, or set train.workers=0\n"), ended.stderr
    assert "Traceback" not in ended.stderr
