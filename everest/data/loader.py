"""Batches of clips, read by worker processes into a ring of slots, and copied to the device.

A batch of a loader is valid until the next one is requested: its slot is then written again. A consumer that
keeps tensors for longer clones them. The loader waits for copies by `copy_to_device`; a consumer that copies
by other asynchronous means waits itself. A batch is divided into chunks, so that several workers read
one batch; the ring has as many slots as the chunks that are read ahead need.

Why not torch.utils.data.DataLoader: for the same clips, workers and order (persistent workers, two batches
ahead) it takes 1.5 times the CPU time of a clip with four views of a video and 1.1 times with one (AMD EPYC,
1 and 2 workers, H.264, 16 x 224 x 224), because it copies clips twice, into new pages. The process that
trains spends 1.8 instead of 0.2 ms on a clip, with the copy into pinned memory: too much for the 2,850 clips
that an H100 computes in a second. DataLoader holds two batches of each worker, the ring usually three in all.
After a crash or a timeout it cannot name the videos, and a signal does not end its wait.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, count
from typing import Final, Literal, NamedTuple

import torch

from everest.data.clip_dataset import Batch, ClipDataset, FailedReads, SampleKey, StepSampler
from everest.data.crops import resize_regions
from everest.data.workers import Ring, WorkerCrash, Workers, field_bytes, free_shared_memory
from everest.errors import DataError, EnvironmentProblem
from everest.system.processes import num_local_processes, num_readers

STOP_SECONDS: Final = 0.25  # heuristic: time between two checks whether to stop, while waiting for a batch
SHARED_MEMORY_FRACTION: Final = 0.5  # heuristic: fraction of the free memory; validation also needs some
COMMON_TENSORS: Final = ("frames", "label", "noise", "erase_boxes")  # in every batch; models may need more
CHUNK_CLIPS: Final = 16  # heuristic: clips per chunk, views included; a chunk has at least one sample
# Heuristic: chunks that may wait for one worker; their descriptions must fit into a connection's buffer.
MAX_CHUNKS_AHEAD: Final = 16

BatchKeys = StepSampler | Sequence[list[SampleKey]]
ClipInfo = tuple[str, FailedReads]  # `video_id` and `failed_reads` of a sample; its tensors are in the ring


class Chunk(NamedTuple):
    """Samples of a batch that a worker reads at once, and where it writes them."""

    task_id: int  # number of the chunk among all chunks of a loader
    slot: int  # slot of the ring that it is written to
    first_row: int  # row of the first sample in the slot
    keys: Sequence[SampleKey]


class BatchDivision(NamedTuple):
    """How batches are divided into chunks."""

    batch_samples: int  # samples of the largest batch
    chunk_samples: int  # samples of a chunk, at most
    chunks_ahead: int  # chunks per worker that are not yet taken; 0 without workers
    num_slots: int  # slots of the ring

    def chunks(self, batches: Iterable[Sequence[SampleKey]]) -> Iterator[list[Chunk]]:
        """Yield the chunks of each batch."""
        task_ids = count()
        size = self.chunk_samples
        for batch_index, keys in enumerate(batches):
            starts = range(0, len(keys), size)
            yield [Chunk(next(task_ids), batch_index % self.num_slots, i, keys[i : i + size]) for i in starts]


class StoppedWaiting(Exception):
    """The wait for a batch was given up, because its loader should stop."""


def choose_workers(dataset: ClipDataset, batches: BatchKeys, workers: int | Literal["auto"]) -> int:
    """The number of workers; `auto` is as many as the cores and the free shared memory allow."""
    return _fitting_workers(dataset, batches, num_readers()) if workers == "auto" else workers


def _fitting_workers(dataset: ClipDataset, batches: BatchKeys, most: int) -> int:
    """The number of workers, at most `most`, whose batches fit into the free shared memory."""
    free_bytes, processes = free_shared_memory(), num_local_processes()
    for num_workers in range(most, 0, -1):
        needed_bytes = shared_bytes(dataset, batches, workers=num_workers) * processes
        if free_bytes is None or needed_bytes <= SHARED_MEMORY_FRACTION * free_bytes:
            return num_workers
    return 0


def read_with_fewer(
    dataset: ClipDataset, batches: BatchKeys, *, workers: int | Literal["auto"], timeout: float
) -> Generator[Batch]:
    """Yield batches like `read_batches`, with fewer workers, or none, if shared memory is short.

    For commands that read each video once: they need not be as fast as training.
    """
    most = min(num_readers() if workers == "auto" else workers, sum(map(len, batches)))
    num_workers = _fitting_workers(dataset, batches, most)
    try:
        loader = ClipLoader(dataset, batches, workers=num_workers, timeout=timeout)
    except EnvironmentProblem:  # a limit of the size of files, or another program was faster
        loader = ClipLoader(dataset, batches, workers=0, timeout=timeout)
    with closing(loader):
        yield from loader


def shared_bytes(dataset: ClipDataset, batches: BatchKeys, *, workers: int) -> int:
    """The bytes of shared memory that a loader uses."""
    division = divide_batches(dataset, batches, workers=workers)
    sizes = field_bytes(dataset.layout(), num_slots=division.num_slots, batch_size=division.batch_samples)
    return sum(sizes.values()) if workers else 0


def divide_batches(dataset: ClipDataset, batches: BatchKeys, *, workers: int) -> BatchDivision:
    """Divide batches into chunks of about equal size, and choose how many chunks are read ahead.

    While a batch is used, the workers read the next batch and one more chunk each, and at least two chunks
    each. With fewer, a worker would wait for the step; with more, the ring would be larger.
    """
    is_sampler = isinstance(batches, StepSampler)
    largest = batches.samples_per_micro_batch if is_sampler else max(map(len, batches), default=1)
    num_chunks = max(1, math.ceil(largest / max(1, CHUNK_CLIPS // dataset.views.num_views)))
    chunk_samples = max(1, math.ceil(largest / num_chunks))
    if not workers:
        return BatchDivision(largest, chunk_samples, chunks_ahead=0, num_slots=1)
    num_chunks = max(1, math.ceil(largest / chunk_samples))
    chunks_ahead = min(workers + max(num_chunks, workers), workers * MAX_CHUNKS_AHEAD)
    num_slots = min(1 + math.ceil(chunks_ahead / num_chunks), max(1, len(batches)))
    return BatchDivision(largest, chunk_samples, math.ceil(chunks_ahead / workers), num_slots)


def read_batches(dataset: ClipDataset, keys: BatchKeys, *, workers: int, timeout: float) -> Generator[Batch]:
    """Yield the batches of a `ClipLoader`, whose workers live from the first batch to the last."""
    with closing(ClipLoader(dataset, keys, workers=workers, timeout=timeout)) as loader:
        yield from loader


class ClipLoader:
    """Reads batches by worker processes, which it starts; EnvironmentProblem if shared memory is short.

    Iterate over it once, and close it. A chunk is sent to a worker only if no batch that is read or used
    occupies its slot of the ring.

    Args:
        batches: the samples of each batch.
        workers: processes that read; 0: this process reads.
        timeout: seconds to wait for a chunk; 0: no limit.
        should_stop: whether to give up the wait for a chunk.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batches: BatchKeys,
        *,
        workers: int,
        timeout: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        division = divide_batches(dataset, batches, workers=workers)
        self._dataset = dataset
        self._timeout = timeout
        self._should_stop = should_stop
        self._num_slots = division.num_slots
        self._upcoming = division.chunks(batches)
        self._loaded: deque[list[Chunk]] = deque()  # batches that occupy a slot, each as its chunks
        self._unsent: deque[Chunk] = deque()  # chunks of these batches that no worker has
        self._copies: list[torch.cuda.Event] = []  # copies of the batch in use
        size = division.batch_samples
        self._ring = Ring(dataset.layout(), num_slots=division.num_slots, batch_size=size, shared=workers > 0)
        self._workers: Workers[Chunk, list[ClipInfo]] = Workers(
            partial(read_chunk, dataset, self._ring), num_workers=workers, max_ahead=division.chunks_ahead
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, each valid until the next one is requested."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._ring.pin()  # after the workers were started: they use no GPU
        self._send()
        while self._loaded:
            chunks = self._loaded[0]
            infos = [info for chunk in chunks for info in self._wait_for_chunk(chunk)]
            tensors = self._ring.batch(chunks[0].slot, len(infos))
            regions = self._dataset.regions(tensors.pop("regions", None))
            self._copies = []
            yield Batch(
                **{name: tensors.pop(name) for name in COMMON_TENSORS},
                video_ids=[video_id for video_id, _ in infos],
                failed_reads=[failed for _, failed in infos],
                inputs=tensors,
                copies=self._copies,
                regions=regions,
            )
            _wait_for_copies(self._copies)
            self._loaded.popleft()  # frees its slot
            self._send()

    def close(self) -> None:
        """End the workers, and wait for copies to a GPU."""
        self._workers.kill()
        _wait_for_copies(self._copies)
        self._ring.unpin()

    def _send(self) -> None:
        """Send chunks to the workers that can take more. Each slot of the ring holds one batch at most."""
        while len(self._loaded) < self._num_slots and (chunks := next(self._upcoming, None)):
            self._loaded.append(chunks)
            self._unsent.extend(chunks)
        while self._unsent and self._workers.add(self._unsent[0].task_id, self._unsent[0]):
            self._unsent.popleft()

    def _wait_for_chunk(self, chunk: Chunk) -> list[ClipInfo]:
        """Wait until a chunk is read."""
        self._send()
        deadline = time.monotonic() + self._timeout if self._timeout else math.inf
        while True:
            remaining = deadline - time.monotonic()
            try:
                return self._workers.take(chunk.task_id, timeout=min(remaining, STOP_SECONDS))
            except TimeoutError:
                if self._should_stop():
                    raise StoppedWaiting from None
                if time.monotonic() >= deadline:
                    limit = f"{self._timeout:g} s (train.data_timeout)"
                    raise DataError(f"no clip within {limit} from one of: {self._paths([chunk])}") from None
            except WorkerCrash as crash:
                chunks = [c for c in chain.from_iterable(self._loaded) if c.task_id in crash.task_ids]
                raise DataError(
                    f"{crash} while it read one of: {self._paths(chunks)}; "
                    "remove the file that it cannot decode from the list"
                ) from None

    def _paths(self, chunks: Iterable[Chunk]) -> str:
        return ", ".join(self._dataset.samples[index].path for chunk in chunks for _, index in chunk.keys)


def read_chunk(dataset: ClipDataset, ring: Ring, chunk: Chunk) -> list[ClipInfo]:
    """Read the clips of a chunk into its rows of the ring."""
    rows = ring.batch(chunk.slot, chunk.first_row + len(chunk.keys))  # (rows, …) each
    infos = []
    for row, key in enumerate(chunk.keys, chunk.first_row):
        clip = dataset.read(key, out=rows["frames"][row])
        tensors = {"label": clip.label, "noise": clip.noise, "erase_boxes": clip.erase_boxes, **clip.inputs}
        if clip.regions is not None:
            tensors["regions"] = clip.regions.boxes
        for name, value in tensors.items():
            rows[name][row] = value
        infos.append((clip.video_id, clip.failed_reads))
    return infos


def _wait_for_copies(copies: Sequence[torch.cuda.Event]) -> None:
    for copy in copies:
        if not copy.query():
            copy.synchronize()


def copy_to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors that a model needs to `device`; on a GPU without waiting for the copies.

    There, regions become the frames of the clips.
    """
    is_gpu = device.type == "cuda"
    tensors = {name: getattr(batch, name).to(device, non_blocking=is_gpu) for name in COMMON_TENSORS}
    inputs = {name: value.to(device, non_blocking=is_gpu) for name, value in batch.inputs.items()}
    regions = batch.regions
    if regions is not None:
        regions = regions._replace(boxes=regions.boxes.to(device, non_blocking=is_gpu))
    if is_gpu:
        copy_event = torch.cuda.Event(blocking=True)  # a wait that leaves the core to the workers
        copy_event.record(torch.cuda.current_stream(device))
        batch.copies.append(copy_event)
    if regions is not None:  # after the copies: the memory of the ring is free before the frames are resized
        tensors["frames"] = resize_regions(tensors["frames"], regions, precise=not is_gpu)
    return batch._replace(**tensors, inputs=inputs, regions=None)


class DeviceCopy:
    """Copies batches to the device on a stream of its own, so that the next batch is copied during a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device. On a GPU the host waits for nothing; later kernels wait for the copy."""
        if self._stream is None:
            return copy_to_device(batch, self._device)
        with torch.cuda.stream(self._stream):
            result = copy_to_device(batch, self._device)
        compute_stream = torch.cuda.current_stream(self._device)
        compute_stream.wait_stream(self._stream)
        for tensor in (*(getattr(result, name) for name in COMMON_TENSORS), *result.inputs.values()):
            tensor.record_stream(compute_stream)  # the memory is free again only when the step has used it
        return result
