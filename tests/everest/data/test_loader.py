"""Every batch of the loader equals its clips read one by one; workers that end are explained."""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everest.config.heads import named_heads
from everest.data.clip_dataset import Batch, ClipDataset, LoadedSample, SampleKey
from everest.data.loader import copy_to_device, read_batches
from everest.data.views import SampleViews
from everest.data.workers import Workers
from everest.errors import DataError, EnvironmentProblem
from everest.lists.sample import Sample
from everest.video.reader import VideoError


def act(task: float | signal.Signals) -> None:
    """What a worker does with a task: takes some seconds, or ends by a signal."""
    if isinstance(task, signal.Signals):
        faulthandler.disable()  # pytest has enabled it; its report would look like a failure
        os.kill(os.getpid(), task)
    time.sleep(task)


@dataclass(frozen=True)
class Sampled:
    """Views of videos that exist in no file: their frames are random numbers."""

    num_views: int = 2
    seconds: float = 0.0  # the longest time that a clip takes
    channels: int = 3
    frames: int = 2
    size: tuple[int, int] = (4, 6)
    region_size: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.num_views, self.channels, self.frames, *self.size

    def __call__(self, sample, rng, decoder, out=None) -> SampleViews:
        time.sleep(rng.random() * self.seconds)
        if sample.path == "crash":
            act(signal.SIGSEGV)
        if sample.path == "damaged":
            raise VideoError(sample.path, "not a video file")
        frames = torch.empty(self.num_views, 3, self.frames, *self.size, dtype=torch.uint8)
        frames = frames if out is None else out
        frames[:] = torch.from_numpy(rng.integers(0, 256, frames.shape, dtype=np.uint8))
        return SampleViews(frames, torch.from_numpy(rng.integers(0, 9, (self.num_views, 4))))


def make_dataset(views: Sampled, videos: int = 9, **options: object) -> ClipDataset:
    samples = [Sample(path="damaged" if i == 0 else f"{i}.mp4", labels=(i, i + 1)) for i in range(videos)]
    heads = named_heads({"verb": 100, "noun": 100})
    fixed = {"seed": 3, "num_noise": 7, "decoder": "auto", "replace_bad": True, "heads": heads}
    given = {"samples": samples} | fixed | options
    return ClipDataset(views=views, **given)  # type: ignore[arg-type]


def keys_of(lengths: Sequence[int], videos: int = 9) -> list[list[SampleKey]]:
    numbers = iter(range(sum(lengths)))
    return [[divmod(next(numbers), videos) for _ in range(length)] for length in lengths]


def equals(batch: Batch, clips: Sequence[LoadedSample]) -> bool:
    parts = zip(*(clip[:-1] for clip in clips), strict=True)  # all but what is for a device
    frames, label, video_ids, noise, erase, failed, inputs = parts
    together = {name: torch.stack([each[name] for each in inputs]) for name in inputs[0]}
    return (
        all(map(torch.equal, (batch.frames, batch.label), map(torch.stack, (frames, label))))
        and all(map(torch.equal, (batch.noise, batch.erase_boxes), map(torch.stack, (noise, erase))))
        and (tuple(batch.video_ids), tuple(batch.failed_reads)) == (video_ids, failed)
        and batch.inputs.keys() == together.keys()
        and all(torch.equal(batch.inputs[name], together[name]) for name in together)
    )


def loaded_equal(dataset: ClipDataset, order, *, workers: int, pause=0.0) -> list[bool]:
    """Whether each batch equals its clips, after a pause in which the workers read ahead."""
    equal = []
    for keys, batch in zip(order, read_batches(dataset, order, workers=workers, timeout=60), strict=True):
        time.sleep(pause)
        equal.append(equals(batch, [dataset.read(key) for key in keys]))
    return equal


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 3),
    st.sampled_from([1, 2, 5, 20]),
    st.booleans(),
)
def test_batches_of_any_lengths_equal_their_clips_for_any_number_of_workers(lengths, workers, views, replace):
    dataset = make_dataset(Sampled(num_views=views), replace_bad=replace)
    assert loaded_equal(dataset, keys_of(lengths), workers=workers) == [True] * len(lengths)


@pytest.mark.parametrize(("batch", "workers"), [(1, 3), (16, 2), (40, 1), (40, 3)])
def test_a_slot_is_not_written_while_its_batch_is_in_use(batch: int, workers: int):
    equal = loaded_equal(make_dataset(Sampled()), keys_of([batch] * 12), workers=workers, pause=0.05)
    assert equal == [True] * 12  # the pause is time enough to write every free slot


def test_batches_that_do_not_fit_into_shared_memory_are_an_error_of_the_machine():
    with pytest.raises(EnvironmentProblem, match="the batches of the workers need"):
        list(read_batches(make_dataset(Sampled(num_views=2**40)), [[(0, 0)] * 512], workers=1, timeout=60))


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
    workers: Workers[float, None] = Workers(act, num_workers=2, max_ahead=3)
    workers.add(0, 60.0)
    workers.add(1, number)
    began = time.monotonic()
    with pytest.raises(EnvironmentProblem, match=message):
        workers.take(0, timeout=60)
    assert time.monotonic() - began < 10
    workers.kill()
    assert readers() == others


ORPHANS = """
import os, sys, time
from everest.data import workers
os.register_at_fork(after_in_child=lambda: time.sleep(float(sys.argv[1])))
pool = workers.Workers(print, num_workers=2, max_ahead=2)
print(*(process.pid for process in pool._processes.values()), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("delay", [0, 2])
def test_workers_end_soon_after_a_killed_program(delay: float):
    """Also workers that begin when the program is gone already."""
    command = [sys.executable, "-c", ORPHANS, str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        numbers = program.stdout.readline().split()
        program.kill()
    assert len(numbers) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_decoder_that_crashes_is_reported_with_the_videos_of_its_group():
    dataset = make_dataset(Sampled(num_views=1), samples=[Sample(path=name) for name in ("a", "crash", "c")])
    order = [[(0, 0)], [(0, 1)], [(0, 2)]]
    with pytest.raises(DataError, match=r"crashed \(SIGSEGV\) while it read one of: crash; remove the file"):
        list(read_batches(dataset, order, workers=1, timeout=60))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_a_slot_is_not_written_before_its_copy_to_a_gpu_is_complete(workers: int):
    device = torch.device("cuda")
    dataset, order = make_dataset(Sampled(num_views=4, size=(112, 112))), keys_of([16] * 8)
    busy = torch.randn(4096, 4096, device=device)
    copied = []
    for batch in read_batches(dataset, order, workers=workers, timeout=60):
        assert batch.frames.is_pinned()
        for _ in range(20):  # the copy is queued after these
            busy = busy @ busy
        copied.append(copy_to_device(batch, device))
    assert not batch.frames.is_pinned()
    for keys, batch in zip(order, copied, strict=True):
        expected = torch.stack([dataset.read(key).frames for key in keys])
        assert torch.equal(batch.frames.cpu(), expected)
