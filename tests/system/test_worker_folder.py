"""The folder of the workers' sockets: removed at the end, after a kill by the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from processes import wait_for_rows
from small_runs import small_recipe

from everest.system.worker_folder import remove_abandoned

OWNER = """
import os, time
from everest.system.worker_folder import make_worker_folder
make_worker_folder()
make_worker_folder()
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(60)
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files whose name leaves room for those of sockets."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_folder_goes_when_its_process_and_the_workers_have_ended(short_folder: Path):
    (short_folder / "pymp-of-another-program").mkdir()
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    with subprocess.Popen([sys.executable, "-c", OWNER], env=environment, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        worker = psutil.Process(int(owner.stdout.readline()))
        assert len(list(short_folder.glob("pymp-*"))) == 2
        remove_abandoned(short_folder)
        assert len(list(short_folder.glob("pymp-*"))) == 2
        owner.kill()
    remove_abandoned(short_folder)
    assert len(list(short_folder.glob("pymp-*"))) == 2, "a worker still uses it"
    worker.kill()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        pass
    remove_abandoned(short_folder)
    assert [folder.name for folder in short_folder.iterdir()] == ["pymp-of-another-program"]


def test_a_long_tmpdir_does_not_keep_workers_waiting(tmp_path: Path, clip_files: Path):
    """The path of a socket has at most 107 bytes."""
    long = tmp_path / ("t" * 100)
    long.mkdir()
    recipe = small_recipe(tmp_path, clip_files)
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--set", "train.workers=1", "-q"]
    command = [sys.executable, "-m", "everest_cli", "pretrain", *options]
    environment = {**os.environ, "TMPDIR": str(long)}
    subprocess.run(list(map(str, command)), env=environment, check=True, timeout=120)
    assert list(long.glob("pymp-*")) == []


@pytest.mark.slow
def test_a_run_leaves_nothing_among_the_temporary_files(tmp_path: Path, short_folder: Path, clip_files: Path):
    recipe = small_recipe(tmp_path, clip_files)
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--set", "train.workers=2", "-q"]
    command = list(map(str, [sys.executable, "-m", "everest_cli", "pretrain", *options]))
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    killed = subprocess.Popen([*command, "--set", "pretrain.epochs=400"], env=environment)
    wait_for_rows(tmp_path / "run", 2, killed)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(short_folder.glob("pymp-*"))) == 1
    psutil.wait_procs(children, timeout=60)
    subprocess.run([*command, "--overwrite"], env=environment, check=True, capture_output=True)
    assert list(short_folder.glob("pymp-*")) == []
