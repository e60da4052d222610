"""Samples to batches: which sample comes when, its random numbers, what takes the place of a broken video.

V views, T frames, H W pixels, M random numbers a view. Every choice about a sample follows from (seed, epoch,
index), the order of the samples from (seed, epoch); so a run continued anywhere, on any number of processes
and workers, sees what the unbroken run would have seen.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from everest.data.lists import Sample
from everest.data.video import VideoError
from everest.data.views import MakeViews, Views
from everest.errors import DataError, EnvironmentProblem, UserError
from everest.randomness import Purpose, generator_at

Place = tuple[int, int]  # (epoch, index of the sample)

MAX_TRIES: Final = 10  # unreadable videos in a row; 1 in 100 is all that a run may meet


class Clip(NamedTuple):
    """One item, and with a leading batch dimension one batch. `default_collate` takes no dataclass."""

    frames: Tensor  # (V, 3, T, H, W) uint8
    label: Tensor  # (heads,) int64, -1 where there is none
    video_id: str
    noise: Tensor  # (V, M) float32 uniform in [0, 1): masks and frame draws
    erase: Tensor  # (V, 4) int64 top, left, height, width; a height of 0 erases nothing
    failed: str  # JSON: [path, reason] of every video that could not be read on the way


class VideoClips(Dataset[Clip | UserError]):
    """Clips of samples, addressed by (epoch, index).

    Args:
        num_noise: M.
        replace_bad: put another sample in the place of one that cannot be read (training); else its frames
            are zeros and `failed` says so (test).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        make_views: MakeViews,
        seed: int,
        num_noise: int,
        decoder: str,
        replace_bad: bool,
    ) -> None:
        self.samples = samples
        self.make_views = make_views
        self.seed = seed
        self.num_noise = num_noise
        self.decoder = decoder
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Place) -> Clip | UserError:
        """The clip of a place; an error is handed over, as one raised in a worker would lose its message."""
        try:
            return self.read(place)
        except UserError as error:
            return error

    def read(self, place: Place) -> Clip:
        """The clip of a place.

        Raises:
            DataError: too many videos in a row cannot be read.
        """
        epoch, index = place
        chosen, failed = index, []
        for attempt in range(MAX_TRIES):
            rng = generator_at(self.seed, Purpose.VIEWS, epoch, index, attempt)
            sample = self.samples[chosen]
            try:
                views = self.make_views(sample, rng, self.decoder)
            except VideoError as error:
                failed.append((str(error.path), error.reason))
                if not self.replace_bad:
                    return self._clip(place, sample, self._no_views(), failed)
                chosen = int(rng.integers(len(self.samples)))
            else:
                return self._clip(place, sample, views, failed)
        path, reason = failed[0]
        raise DataError(f"{MAX_TRIES} videos in a row cannot be read, first {path}: {reason}")

    def _clip(self, place: Place, sample: Sample, views: Views, failed: list[tuple[str, str]]) -> Clip:
        num_views = len(views.frames)
        rng = generator_at(self.seed, Purpose.NOISE, *place)
        noise = rng.random((num_views, self.num_noise), dtype=np.float32)
        return Clip(
            frames=views.frames,
            label=torch.tensor(sample.labels or (-1,), dtype=torch.int64),
            video_id=sample.video_id,
            noise=torch.from_numpy(noise),
            erase=views.erase,
            failed=json.dumps(failed),
        )

    def _no_views(self) -> Views:
        maker = self.make_views
        frames = torch.zeros(maker.num_views, 3, maker.frames, *maker.size, dtype=torch.uint8)
        return Views(frames, erase=torch.zeros(maker.num_views, 4, dtype=torch.int64))


class StepSampler(Sampler[list[Place]]):
    """Micro-batches of (epoch, index) of one process, from any step to the end of the last epoch.

    One iteration goes over all epochs, so that the loader's workers live as long as the run and nobody has to
    tell them the epoch. A step's batch is cut into contiguous shares of the processes, a share into
    `accumulation` micro-batches. What is left of an epoch after its steps is left out; fewer samples than a
    batch are repeated until they fill it.

    Args:
        batch_size: samples a step, over all processes and micro-batches.
        start_step: steps already done, over all epochs.
        repeat_first: give the first step's batch again and again, to see whether it can be learned by heart.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        epochs: int,
        steps_per_epoch: int,
        seed: int,
        start_step: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        repeat_first: bool = False,
    ) -> None:
        assert batch_size % (world * accumulation) == 0
        assert steps_per_epoch == 1 or steps_per_epoch * batch_size <= num_samples
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_steps = epochs * steps_per_epoch
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.start_step = start_step
        self.accumulation = accumulation
        self.rank = rank
        self.world = world
        self.repeat_first = repeat_first

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Place]]:
        if self.repeat_first:
            yield from self._first_again()
            return
        first_epoch, skipped = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.num_steps // self.steps_per_epoch):
            order = self._order(epoch)  # (steps, processes, micro-batches, samples)
            for micro_batches in order[skipped:, self.rank]:
                for indices in micro_batches.tolist():
                    yield [(epoch, index) for index in indices]
            skipped = 0

    def _first_again(self) -> Iterator[list[Place]]:
        first = self._order(0)[0, self.rank].tolist()
        for _ in range(self.num_steps - self.start_step):
            yield from ([(0, index) for index in indices] for indices in first)

    def _order(self, epoch: int) -> np.ndarray:
        order = generator_at(self.seed, Purpose.ORDER, epoch).permutation(self.num_samples)
        order = np.resize(order, self.steps_per_epoch * self.batch_size)
        return order.reshape(self.steps_per_epoch, self.world, self.accumulation, -1)


def make_loader(
    dataset: VideoClips,
    order: Sampler[list[Place]] | Sequence[list[Place]],
    *,
    workers: int,
    timeout: float,
) -> DataLoader[Clip | UserError]:
    """A loader of batches of clips; read it by `batches`.

    Args:
        timeout: seconds to wait for a worker before giving up.
    """
    if workers:
        atexit.register(_kill_workers)
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout if workers else 0,
    )


def batches(loader: DataLoader[Clip | UserError]) -> Iterator[Clip]:
    """The batches of a loader; what goes wrong in its workers is told as a user's error.

    Raises:
        DataError: videos cannot be read, or a worker hangs; the videos that it was reading are named.
        EnvironmentProblem: a worker was killed.
    """
    order = cast("Iterable[list[Place]]", loader.batch_sampler)
    loaded = iter(loader)
    for places in order:
        try:
            batch = next(loaded)
        except RuntimeError as error:
            raise _worker_error(error, loader, places) from error
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _worker_error(
    error: RuntimeError, loader: DataLoader[Clip | UserError], places: Sequence[Place]
) -> Exception:
    if "timed out" in str(error):
        _kill_workers()
        assert isinstance(loader.dataset, VideoClips)
        names = ", ".join(loader.dataset.samples[index].path for _, index in places)
        return DataError(f"no clip within {loader.timeout:g} s (train.data_timeout) from one of: {names}")
    return killed_worker(error) or error


def killed_worker(error: RuntimeError) -> EnvironmentProblem | None:
    """What to tell of an error that is torch's word for a killed worker, else None.

    torch notices by SIGCHLD and raises wherever the program is, once for each worker; after the first it is
    told to be silent.
    """
    if "DataLoader worker" not in str(error):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return EnvironmentProblem(
        "a process that reads videos was killed, most often for want of memory: lower train.workers"
    )


def _collate(items: list[Clip | UserError]) -> Clip | UserError:
    failed = next((item for item in items if isinstance(item, UserError)), None)
    return failed or default_collate(items)


def _start_worker(worker_id: int) -> None:
    """One thread a worker: the workers are the parallelism. Signals are for the process that trains."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """End workers for good: one that hangs in a decoder would keep this process from ending."""
    for child in multiprocessing.active_children():
        child.kill()


def failures(batch: Clip) -> list[list[tuple[str, str]]]:
    """For every sample of `batch` that did not come at once: path and reason of what could not be read."""
    of_samples = (json.loads(text) for text in batch.failed)
    return [[(path, reason) for path, reason in tries] for tries in of_samples if tries]
