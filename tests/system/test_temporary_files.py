"""Worker processes leave nothing among the temporary files, wherever they are."""

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


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files whose name leaves room for those of sockets."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_long_tmpdir_does_not_keep_workers_waiting(tmp_path: Path, clip_files: Path):
    """The path of a socket has at most 107 bytes, and the processes use none."""
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
    assert len(children) >= 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert list(short_folder.iterdir()) == []
