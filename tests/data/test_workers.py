"""Worker processes that are killed, stopped or full of work; their results keep their numbers."""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from everest.data.clips import VideoClips
from everest.data.loader import batches
from everest.data.views import SampleViews
from everest.data.workers import Workers
from everest.errors import DataError, EnvironmentProblem
from everest.lists.sample import Sample


def die(number: signal.Signals) -> None:
    faulthandler.disable()  # pytest has enabled it; its report would look like a failure
    os.kill(os.getpid(), number)


def act(task: object) -> object:
    """What a worker does with a task: ends in some way, or answers."""
    if isinstance(task, signal.Signals):
        die(task)
    if isinstance(task, Exception):
        raise task
    if isinstance(task, float):
        time.sleep(task)
    return bytes(task) if isinstance(task, int) else task


def readers() -> set[BaseProcess]:
    """The workers that are alive, of loaders of other tests, too."""
    return {process for process in multiprocessing.active_children() if process.name == "everest reader"}


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "lower train.workers"),
        (signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
        (signal.SIGBUS, "shared memory"),
    ],
)
def test_a_worker_that_ends_is_explained_at_once(number: signal.Signals, message: str):
    others = readers()
    workers: Workers[object, object] = Workers(act, number=2, ahead=3)
    workers.add(0, 60.0)
    workers.add(1, number)
    began = time.monotonic()
    with pytest.raises(EnvironmentProblem, match=message):
        workers.take(0, limit=60)
    assert time.monotonic() - began < 10
    workers.kill()
    assert readers() == others


ORPHANS = """
import os, sys, time
from everest.data import workers
os.register_at_fork(after_in_child=lambda: time.sleep(float(sys.argv[1])))
pool = workers.Workers(print, number=2, ahead=2)
print(*(process.pid for process in pool._processes.values()), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("delay", [0, 2])
def test_workers_end_soon_after_a_killed_program(delay: float):
    """Also workers that begin when the program is gone already."""
    command = [sys.executable, "-c", ORPHANS, str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        numbers = program.stdout.readline().split()
        program.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


class CrashingViews:
    """Views whose decoder crashes at b.mp4."""

    num_views, channels, frames, size = 1, 3, 4, (32, 32)
    shape, region = (1, 3, 4, 32, 32), None

    def __call__(self, sample: Sample, rng: object, decoder: str, cache: object, out: Tensor) -> SampleViews:
        if sample.path == "b.mp4":
            die(signal.SIGSEGV)
        return SampleViews(frames=out.zero_(), erase=torch.zeros(1, 4, dtype=torch.int64))


def test_a_decoder_that_crashes_is_reported_with_the_videos_of_its_group():
    samples = [Sample(path=f"{name}.mp4") for name in "abcd"]
    clips = VideoClips(
        samples, make_views=CrashingViews(), seed=0, num_noise=1, decoder="auto", replace_bad=True
    )
    order = [[(0, 0)], [(0, 1)], [(0, 2)]]
    with pytest.raises(DataError, match=r"crashed \(SIGSEGV\) while it read one of: b\.mp4; remove the file"):
        list(batches(clips, order, workers=1, timeout=60))
