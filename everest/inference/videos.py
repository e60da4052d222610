"""A model run over all views of videos, or of their windows.

B clips, R videos or windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

from torch import Tensor

from everest.config.settings import TrainSettings
from everest.data.clip_dataset import ClipDataset
from everest.data.loader import STOP_SECONDS, read_with_fewer
from everest.errors import DataError
from everest.inference.opened_model import OpenedModel, check_counts
from everest.inference.pieces import EncodedPieces, PieceModel, ViewTensors
from everest.inference.windows import (
    MIN_SECONDS,
    Unreadable,
    Window,
    WindowItem,
    check_seconds,
    read_segment_items,
    read_window_items,
    step_on_grid,
)
from everest.lists.sample import ListSize, Sample
from everest.system.events import Emit, ignore_event, notice

Compute = Callable[[Tensor], ViewTensors]  # of clips (B, C, T, H, W) uint8, to tensors of B rows


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Options for running a model over videos or their windows; RecipeError for one out of range."""

    batch: int = 1  # videos, or windows of one video, in a forward pass
    window: float | None = None  # seconds of a window; None: the length of a clip
    step: float | None = None  # seconds from the start of a window to that of the next; None: `window`
    emit: Emit = ignore_event

    def __post_init__(self) -> None:
        check_counts(batch=self.batch)
        check_seconds(window=self.window, step=self.step)

    def on_grid(self, model: OpenedModel) -> Batching:
        """The same options with windows that share frames, see `step_on_grid`; a changed step is reported."""
        if self.window is None or self.step is None or model.sees_whole_clips:
            return self
        step = step_on_grid(model.views, window=self.window, step=self.step)
        if abs(step - self.step) > MIN_SECONDS:
            spacing = f"the frames of a clip are {self.window / model.views.frames:.3g} s apart"
            self.emit(notice(f"windows begin every {step:.4g} s, not {self.step:g} s: {spacing}"))
        return replace(self, step=step)

    def divide(self, indices: range) -> list[range]:
        """Divide successive videos into forward passes: the indices of each."""
        return [indices[first : first + self.batch] for first in range(0, len(indices), self.batch)]


def compute_over_videos(
    dataset: ClipDataset,
    batches: Sequence[range],
    compute: Compute,
    *,
    train: TrainSettings,
    emit: Emit,
    processes: int = 1,
) -> Iterator[list[ViewTensors | Unreadable]]:
    """Yield the values of the views of each sample, batch by batch.

    Args:
        dataset: its unreadable samples are not replaced.
        batches: the samples of each batch.
        processes: the number of processes that divide the samples.
    """
    if not batches:
        return
    keys = [[(0, index) for index in indices] for indices in batches]
    loaded = read_with_fewer(dataset, keys, workers=train.workers, timeout=train.data_timeout)
    size = ListSize.of(dataset.samples)
    num_done = max(size.num_samples - sum(map(len, batches)) * processes, 0)
    for batch in loaded:
        readable = [row for row, failed in enumerate(batch.failed_reads) if not failed]
        values = _compute_each(compute, batch.frames[readable]) if readable else iter(())
        results = [Unreadable(failed[0][1]) if failed else next(values) for failed in batch.failed_reads]
        num_done = min(num_done + len(results) * processes, size.num_samples)
        emit(size.progress_event(num_done))
        yield results


def compute_over_windows(
    model: OpenedModel,
    sample: Sample,
    compute: PieceModel,
    batching: Batching,
    *,
    done: Sequence[Unreadable | None] = (),
) -> Iterator[list[tuple[Window, ViewTensors] | Unreadable]]:
    """Yield the windows of `read_window_items` in batches, with the values of their views.

    All windows of a batch are of one video: the values do not depend on other videos.

    Raises:
        DataError: a window takes longer than the recipe's `train.data_timeout` (0: no limit).
    """
    read_items = partial(
        read_window_items,
        sample,
        model.views,
        [encoder.frames for encoder in compute.encoders],
        window=batching.window,
        step=batching.step,
        batch=batching.batch,
        done=done,
    )
    timeout = model.recipe.train.data_timeout
    encoded = EncodedPieces(compute)
    items = encoded.encode(_read_ahead(read_items, batching, timeout=timeout, path=sample.path))
    while items_of_batch := list(islice(items, batching.batch)):
        intact = [item for item in items_of_batch if not isinstance(item, Unreadable)]
        values = encoded.join(intact) if intact else iter(())
        for item in items_of_batch:
            if isinstance(item, Unreadable) and not item.is_window:
                batching.emit(notice(f"{sample.video_id}: {item.reason}"))
        yield [
            item if isinstance(item, Unreadable) else (item.window, next(values)) for item in items_of_batch
        ]


def compute_over_segments(
    model: OpenedModel, samples: Sequence[Sample], compute: PieceModel, batching: Batching, *, done: int = 0
) -> Iterator[ViewTensors | Unreadable]:
    """Yield the values of the views of samples after the first `done`.

    What successive segments of a video share is read and encoded once. A sample's values do not depend on
    `done`, to the bit.
    """
    for _, group in groupby(samples, key=lambda sample: sample.video):
        segments = [*group]
        if done < len(segments):
            yield from _compute_segments(model, segments, compute, batching, done)
        done = max(done - len(segments), 0)


def _compute_segments(
    model: OpenedModel, segments: Sequence[Sample], compute: PieceModel, batching: Batching, done: int
) -> Iterator[ViewTensors | Unreadable]:
    sizes = [encoder.frames for encoder in compute.encoders]
    encoded = EncodedPieces(compute)
    items = _read_ahead(
        lambda emit: read_segment_items(segments, model.views, sizes, batch=batching.batch, done=done),
        batching,
        timeout=model.recipe.train.data_timeout,
        path=segments[0].path,
    )
    for item in encoded.encode(items):
        yield item if isinstance(item, Unreadable) else next(encoded.join([item]))


def _read_ahead(
    read: Callable[..., Iterator[WindowItem]], batching: Batching, *, timeout: float, path: str
) -> Iterator[WindowItem]:
    """Yield the items that `read` yields in another thread, a batch ahead; pass on its reports."""
    queue: Queue[WindowItem | dict[str, Any] | Exception | None] = Queue(batching.batch)
    should_stop = Event()

    def put(item: WindowItem | dict[str, Any] | Exception | None) -> None:
        while not should_stop.is_set():
            with suppress(Full):
                return queue.put(item, timeout=STOP_SECONDS)

    def work() -> None:
        try:
            for item in read(emit=put):
                put(item)
                if should_stop.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    # A thread that waits for a file for ever does not keep the process from ending.
    Thread(target=work, daemon=True, name="everest reader").start()
    try:
        while True:
            try:
                item = queue.get(timeout=timeout or None)
            except Empty:
                limit = f"{timeout:g} s (train.data_timeout)"
                raise DataError(f"no window within {limit} from {path}") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            if isinstance(item, dict):
                batching.emit(item)
            else:
                yield item
    finally:
        should_stop.set()


def _compute_each(compute: Compute, frames: Tensor) -> Iterator[ViewTensors]:
    """Compute the values of R videos or windows, (R, V, C, T, H, W), at once; yield those of each."""
    values = compute(frames.flatten(0, 1))
    by_video = {name: x.unflatten(0, frames.shape[:2]) for name, x in values.items()}  # (R, V, …) each
    return ({name: x[i] for name, x in by_video.items()} for i in range(len(frames)))
