"""The folder of the workers' sockets: removed at the end, after a kill by the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_a_folder_goes_when_its_process_and_the_workers_have_ended(tmp_path: Path):
    (tmp_path / "pymp-of-another-program").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", OWNER], env=environment, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        worker = psutil.Process(int(owner.stdout.readline()))
        assert len(list(tmp_path.glob("pymp-*"))) == 2
        remove_abandoned(tmp_path)
        assert len(list(tmp_path.glob("pymp-*"))) == 2
        owner.kill()
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.glob("pymp-*"))) == 2, "a worker still uses it"
    worker.kill()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        pass
    remove_abandoned(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["pymp-of-another-program"]


def test_a_long_tmpdir_does_not_keep_workers_waiting(tmp_path: Path, clip_files: Path):
    """The path of a socket has at most 107 bytes."""
    long = tmp_path / ("t" * 100)
    long.mkdir()
    recipe = small_recipe(tmp_path, clip_files)
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--set", "train.workers=1", "-q"]
    command = [sys.executable, "-m", "everest_cli", "pretrain", *options]
    environment = {**os.environ, "TMPDIR": str(long)}
    subprocess.run(list(map(str, command)), env=environment, check=True, timeout=120)
    assert list(long.iterdir()) == []


@pytest.mark.slow
def test_a_run_leaves_nothing_among_the_temporary_files(tmp_path: Path, clip_files: Path):
    (tmp_path / "temporary").mkdir()
    recipe = small_recipe(tmp_path, clip_files)
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--set", "train.workers=2", "-q"]
    command = list(map(str, [sys.executable, "-m", "everest_cli", "pretrain", *options]))
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    killed = subprocess.Popen([*command, "--set", "pretrain.epochs=400"], env=environment)
    wait_for_rows(tmp_path / "run", 2, killed)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list((tmp_path / "temporary").glob("pymp-*"))) == 1
    psutil.wait_procs(children, timeout=60)
    subprocess.run([*command, "--overwrite"], env=environment, check=True, capture_output=True)
    assert list((tmp_path / "temporary").glob("pymp-*")) == []
