"""The number of processes that read videos follows from the cores, the memory and the other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everest.config.recipe import load_recipe
from everest.errors import RecipeError
from everest.system import cores
from everest.system.cores import JOBS, crowded_cores, num_cores, num_readers

ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from everest.system.cores import num_cores, num_readers
print(num_cores(), num_readers())
"""


CROWDED_BY_OTHERS = """
import time
from everest.system.cores import BusyCores, crowded_cores
for _ in range(20):  # the tests that run at the same time come and go
    others = BusyCores()
    time.sleep(0.5)
    if crowded := crowded_cores(*others.measure()):
        break
print(crowded)
"""


def test_a_process_bound_to_one_core_has_one_reader():
    printed = subprocess.run([sys.executable, "-c", ONE_CORE], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(("text", "expected"), [("100000 100000", 1), ("150000 100000", 1), ("1 100000", 1)])
def test_the_limit_of_a_container_counts(
    text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quota = tmp_path / "cpu.max"
    quota.write_text(f"{text}\n")
    monkeypatch.setattr(cores, "QUOTA", quota)
    assert num_cores() == expected


@pytest.mark.parametrize("text", ["max 100000\n", "", None])
def test_without_a_limit_all_cores_count(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text)
    monkeypatch.setattr(cores, "QUOTA", quota)
    assert num_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("processes", "jobs", "readers"),
    [("1", None, 16), ("2", "4", 2), ("1", "4", 4), ("1", "", 16), ("9", "9", 1)],
)
def test_the_processes_of_a_run_and_the_jobs_of_a_sweep_share_the_cores(
    processes: str, jobs: str | None, readers: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cores, "num_cores", lambda: 16)
    monkeypatch.setattr(cores, "READER_BYTES", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.delenv(JOBS, raising=False)
    if jobs is not None:
        monkeypatch.setenv(JOBS, jobs)
    assert num_readers() == readers


def test_a_run_is_warned_of_processes_that_use_the_cores():
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_cores())]
    try:
        outside = subprocess.run(
            [sys.executable, "-c", CROWDED_BY_OTHERS], capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert f"of the {num_cores()} cores of this machine; runs that share cores" in outside.stdout


def test_a_machine_with_free_cores_gives_no_warning():
    assert crowded_cores(0, num_cores() / 2) is None
    assert crowded_cores(num_cores(), num_cores() / 4) is None


def test_a_run_that_shares_the_cores_evenly_is_warned():
    assert crowded_cores(num_cores() / 2, num_cores() / 2) is not None


@pytest.mark.parametrize(("value", "number"), [("auto", None), ("0", 0), ("3", 3)])
def test_a_recipe_leaves_the_number_open_or_sets_it(value: str, number: int | None):
    settings = load_recipe("ucf101", overrides=[f"train.workers={value}"]).train
    assert settings.num_workers == (num_readers() if number is None else number)


@pytest.mark.parametrize("value", ["many", "-1", "true", "1.5"])
def test_another_number_of_workers_is_refused(value: str):
    with pytest.raises(RecipeError, match=r"train\.workers: must be 'auto' or an integer from 0"):
        load_recipe("ucf101", overrides=[f"train.workers={value}"])
