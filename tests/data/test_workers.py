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

import psutil
import pytest
import torch
from torch import Tensor

from everest.data.dataset import VideoClips
from everest.data.loader import batches
from everest.data.views import Views
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


def workers_of(number: int) -> Workers[object, object]:
    return Workers(act, number=number, ahead=3)


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
    workers = workers_of(2)
    workers.add(0, 60.0)
    workers.add(1, number)
    began = time.monotonic()
    with pytest.raises(EnvironmentProblem, match=message):
        workers.take(0, limit=60)
    assert time.monotonic() - began < 10
    workers.kill()
    assert readers() == others


def test_a_worker_killed_while_it_writes_a_result_is_noticed():
    others = readers()
    workers = workers_of(1)
    workers.add(0, 50_000_000)  # more than a connection holds: the worker waits in the middle of it
    time.sleep(0.5)
    (worker,) = readers() - others
    worker.kill()
    with pytest.raises(EnvironmentProblem, match="was killed"):
        workers.take(0)
    workers.kill()
    workers = workers_of(1)
    workers.add(0, signal.SIGSTOP)
    with pytest.raises(TimeoutError):  # a result that does not come; the worker can be killed
        workers.take(0, limit=0.3)
    workers.kill()


@pytest.mark.parametrize("number", [0, 1, 3])
def test_results_may_be_taken_in_any_order(number: int):
    workers = workers_of(number)
    for task in range(3):
        assert workers.has_room
        workers.add(task, f"task {task}")
    assert workers.has_room == (number != 1)
    assert [workers.take(task) for task in (2, 0, 1)] == ["task 2", "task 0", "task 1"]
    workers.kill()


def test_a_users_error_arrives_as_it_was_raised():
    workers = workers_of(1)
    workers.add(0, DataError("list.csv: no such file"))
    with pytest.raises(DataError, match=r"^list\.csv: no such file$") as caught:
        workers.take(0)
    assert not hasattr(caught.value, "__notes__")
    workers.kill()


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


BUSY = """
import os, time
from everest.data import workers
workers.SECONDS_ALONE = 0.2
def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)
pool = workers.Workers(work, number=2, ahead=2)
for number, seconds in enumerate((0, 300)):
    pool.add(number, seconds)
    time.sleep(1)
time.sleep(60)
"""


def test_a_worker_does_not_wait_for_one_that_hangs_when_the_program_is_killed():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        idle, hanging = (psutil.Process(int(program.stdout.readline())) for _ in range(2))
        program.kill()
        try:
            assert psutil.wait_procs([idle], timeout=20)[0] == [idle]
            assert hanging.is_running()
        finally:
            hanging.kill()


class CrashingViews:
    """Views whose decoder crashes at b.mp4."""

    num_views, channels, frames, size = 1, 3, 4, (32, 32)
    shape, region = (1, 3, 4, 32, 32), None

    def __call__(self, sample: Sample, rng: object, decoder: str, cache: object, out: Tensor) -> Views:
        if sample.path == "b.mp4":
            die(signal.SIGSEGV)
        return Views(frames=out.zero_(), erase=torch.zeros(1, 4, dtype=torch.int64))


def test_a_decoder_that_crashes_is_reported_with_the_videos_of_its_group():
    samples = [Sample(path=f"{name}.mp4") for name in "abcd"]
    clips = VideoClips(
        samples, make_views=CrashingViews(), seed=0, num_noise=1, decoder="auto", replace_bad=True
    )
    order = [[(0, 0)], [(0, 1)], [(0, 2)]]
    with pytest.raises(DataError, match=r"crashed \(SIGSEGV\) while it read one of: b\.mp4; remove the file"):
        list(batches(clips, order, workers=1, timeout=60))
