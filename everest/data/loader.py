"""Batches of clips, read by worker processes into a ring of slots, and copied to the device.

A batch that `batches` yields is valid until the next one is requested: its slot is then written again. A
consumer that keeps tensors for longer clones them. The loader waits for copies to a GPU by `on_device`; a
consumer that copies by other asynchronous means waits itself.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import torch

from everest.data.dataset import Clip, StepSampler, VideoClips
from everest.data.regions import resize_regions
from everest.data.ring import Ring, free_shared_memory, require_shared_memory, ring_bytes
from everest.data.workers import Division, Group, SampleKey, WorkerCrash, Workers, divide
from everest.errors import DataError
from everest.system.machine import num_readers
from everest.system.processes import local_processes

STOP_SECONDS: Final = 0.25  # our choice: between two looks whether to stop, while a batch does not come
MOMENT: Final = 1e-3  # seconds; a wait of 0 would have no end
SHARED_PART: Final = 0.5  # our choice: of the free shared memory; a validation during a run needs some, too
OF_EVERY_CLIP: Final = ("frames", "label", "noise", "erase")  # tensors; a tokenizer adds its own

Order = StepSampler | Sequence[list[SampleKey]]


class StoppedWaiting(Exception):
    """The wait for a batch was given up, because its loader should stop."""


class Names(NamedTuple):
    """The texts of a clip, which a worker returns; its tensors are in the ring."""

    video_id: str
    failed: str


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipLoader:
    """Clips, the order of their batches, and the processes that read them; iterate over it with `batches`."""

    dataset: VideoClips
    order: Order
    workers: int  # processes that read; 0: this process reads
    timeout: float  # seconds to wait for a group of clips of a worker
    should_stop: Callable[[], bool] = lambda: False  # whether to give up the wait for a group

    @property
    def largest(self) -> int:
        """The number of samples of the largest batch."""
        if isinstance(self.order, StepSampler):
            return self.order.batch_samples
        return max(map(len, self.order), default=1)

    def division(self) -> Division:
        """How batches are divided among the workers."""
        views = self.dataset.make_views.num_views
        return divide(batch=self.largest, views=views, workers=self.workers, batches=len(self.order))


def make_loader(
    dataset: VideoClips,
    order: Order,
    *,
    workers: int,
    timeout: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> ClipLoader:
    """The loader; EnvironmentProblem if there is too little shared memory for its batches."""
    require_shared_memory(shared_bytes(dataset, order, workers=workers))
    return ClipLoader(dataset=dataset, order=order, workers=workers, timeout=timeout, should_stop=should_stop)


def choose_workers(dataset: VideoClips, order: Order, workers: int | Literal["auto"]) -> int:
    """Returns the number of workers; for `auto` as many as the cores and the free shared memory allow."""
    if workers != "auto":
        return workers
    free, processes = free_shared_memory(), local_processes()
    for number in range(num_readers(), 0, -1):
        needed = shared_bytes(dataset, order, workers=number) * processes
        if free is None or needed <= SHARED_PART * free:
            return number
    return 0


def shared_bytes(dataset: VideoClips, order: Order, *, workers: int) -> int:
    """Returns the bytes of shared memory that a loader uses."""
    if not workers:
        return 0
    loader = ClipLoader(dataset=dataset, order=order, workers=workers, timeout=0)
    return ring_bytes(dataset.layout(), slots=loader.division().slots, batch=loader.largest)


def batches(loader: ClipLoader) -> Generator[Clip]:
    """Yields the batches of a loader, each valid until the next one is requested."""
    division = loader.division()
    ring = Ring(
        loader.dataset.layout(), slots=division.slots, batch=loader.largest, shared=loader.workers > 0
    )
    work = partial(read_group, loader.dataset, ring)
    workers: Workers[Group, list[Names]] = Workers(work, number=loader.workers, ahead=division.ahead)
    reading = _Reading(loader, division, workers)
    copies: list[torch.cuda.Event] = []
    try:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            ring.pin()  # after the workers were started: they use no GPU
        while groups := reading.next_groups():
            names = [name for group in groups for name in reading.take(group)]
            tensors = ring.batch(groups[0].slot, len(names))
            own: dict[str, Any] = {name: tensors.pop(name) for name in OF_EVERY_CLIP}
            own |= {"video_id": [each.video_id for each in names], "failed": [each.failed for each in names]}
            copies, regions = [], loader.dataset.regions(tensors.pop("regions", None))
            yield Clip(**own, tokens=tensors, copies=copies, regions=regions)
            _wait_for(copies)
            reading.release()
    finally:
        workers.kill()
        _wait_for(copies)
        ring.unpin()


def read_group(dataset: VideoClips, ring: Ring, group: Group) -> list[Names]:
    """Reads the clips of a group into its rows of the ring."""
    rows = ring.batch(group.slot, group.first + len(group.keys))  # (rows, …) each
    names = []
    for row, key in enumerate(group.keys, group.first):
        clip = dataset.read(key, out=rows["frames"][row])
        tensors = {"label": clip.label, "noise": clip.noise, "erase": clip.erase, **clip.tokens}
        if clip.regions is not None:
            tensors["regions"] = clip.regions.boxes
        for name, value in tensors.items():
            rows[name][row] = value
        names.append(Names(clip.video_id, clip.failed))
    return names


def _wait_for(copies: Sequence[torch.cuda.Event]) -> None:
    for copied in copies:
        if not copied.query():
            copied.synchronize()


class _Reading:
    """The groups under way. A group is sent only if no batch that is read or used occupies its slot."""

    def __init__(self, loader: ClipLoader, division: Division, workers: Workers[Group, list[Names]]) -> None:
        self._loader = loader
        self._slots = division.slots
        self._workers = workers
        self._following = division.groups(loader.order)
        self._begun: deque[list[Group]] = deque()  # batches that occupy a slot
        self._unsent: deque[Group] = deque()  # groups of these batches

    def next_groups(self) -> list[Group] | None:
        """Return the groups of the next batch; None after the last."""
        self._begin()
        return self._begun[0] if self._begun else None

    def take(self, group: Group) -> list[Names]:
        """Wait for a group of clips."""
        limit, samples = self._loader.timeout, self._loader.dataset.samples
        self._begin()
        deadline = time.monotonic() + limit if limit else math.inf
        try:
            while True:
                try:
                    left = deadline - time.monotonic()
                    return self._workers.take(group.number, limit=max(min(left, STOP_SECONDS), MOMENT))
                except TimeoutError:
                    if self._loader.should_stop():
                        raise StoppedWaiting from None
                    if time.monotonic() >= deadline:
                        names = ", ".join(samples[index].path for _, index in group.keys)
                        message = f"no clip within {limit:g} s (train.data_timeout) from one of: {names}"
                        raise DataError(message) from None
        except WorkerCrash as crash:
            groups = (group for batch in self._begun for group in batch if group.number in crash.tasks)
            names = ", ".join(samples[index].path for group in groups for _, index in group.keys)
            raise DataError(
                f"{crash} while it read one of: {names}; remove the file that it cannot decode from the list"
            ) from None

    def release(self) -> None:
        """Free the slot of the batch that was used."""
        self._begun.popleft()

    def _begin(self) -> None:
        while len(self._begun) < self._slots and (groups := next(self._following, None)):
            self._begun.append(groups)
            self._unsent.extend(groups)
        while self._unsent and self._workers.has_room:
            group = self._unsent.popleft()
            self._workers.add(group.number, group)


def on_device(batch: Clip, device: torch.device) -> Clip:
    """Copies the tensors that a model needs to `device`; on a GPU without waiting for the copies.

    There, regions become the frames of the clips.
    """
    is_gpu = device.type == "cuda"
    moved = {name: getattr(batch, name).to(device, non_blocking=is_gpu) for name in OF_EVERY_CLIP}
    tokens = {name: value.to(device, non_blocking=is_gpu) for name, value in batch.tokens.items()}
    regions = batch.regions
    if regions is not None:
        regions = regions._replace(boxes=regions.boxes.to(device, non_blocking=is_gpu))
    if is_gpu:
        copied = torch.cuda.Event(blocking=True)  # a wait that leaves the core to the workers
        copied.record(torch.cuda.current_stream(device))
        batch.copies.append(copied)
    if regions is not None:  # after the copies: the memory of the ring is free before the frames are resized
        moved["frames"] = resize_regions(moved["frames"], regions, precise=not is_gpu)
    return batch._replace(**moved, tokens=tokens, regions=None)


class DeviceCopy:
    """Copies the tensors of batches by a stream of their own: the next batch is copied during a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Clip) -> Clip:
        """The batch on the device. On a GPU the host waits for nothing; later kernels wait for the copy."""
        if self._stream is None:
            return on_device(batch, self._device)
        with torch.cuda.stream(self._stream):
            moved = on_device(batch, self._device)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for tensor in (moved.frames, moved.label, moved.noise, moved.erase, *moved.tokens.values()):
            tensor.record_stream(computing)  # the memory is free again only when the step has used it
        return moved
