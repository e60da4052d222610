"""A model run over all views of videos, or of their windows.

B clips, R videos or windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from everest.data.clips import VideoClips
from everest.data.loader import STOP_SECONDS, batches, choose_workers
from everest.errors import DataError
from everest.inference.model import OpenedModel, check_counts
from everest.inference.windows import Item, Unreadable, Window, window_items
from everest.lists.sample import Sample
from everest.system.events import Report, notice

ViewTensors = dict[str, Tensor]  # (V, …) each
Compute = Callable[[Tensor], ViewTensors]  # of clips (B, C, T, H, W) uint8, to tensors of B rows


def divided(samples: Sequence[Sample], batch: int) -> list[range]:
    """The numbers of the videos of each forward pass."""
    check_counts(batch=batch)
    return [range(first, min(first + batch, len(samples))) for first in range(0, len(samples), batch)]


def compute_over_videos(
    model: OpenedModel,
    samples: Sequence[Sample],
    compute: Compute,
    *,
    parts: Sequence[range],
    report: Report,
    workers: int | None = None,
    processes: int = 1,
) -> Iterator[list[tuple[Sample, ViewTensors | Unreadable]]]:
    """Yield the videos of each pass, each with the values of its views.

    Args:
        parts: the videos of each pass: all or the last ones of `divided`, or a share of them.
        workers: processes that read videos; None: as the recipe's `train.workers`, which also waits no longer
            than `train.data_timeout` for a video.
        processes: that have a share each.
    """
    clips = VideoClips(
        samples,
        make_views=model.views,
        seed=0,
        num_noise=0,
        decoder=model.recipe.data.decoder,
        replace_bad=False,
    )
    if not parts:
        return
    order = [[(0, index) for index in part] for part in parts]
    settings = model.recipe.train
    number = sum(map(len, parts))
    chosen = choose_workers(clips, order, settings.workers if workers is None else workers)
    loaded = batches(clips, order, workers=min(chosen, number), timeout=settings.data_timeout)
    done = max(len(samples) - number * processes, 0)
    for part, read in zip(parts, loaded, strict=True):
        readable = [row for row, failed in enumerate(read.failed) if not failed]
        values = _values_of_each(compute, read.frames[readable]) if readable else iter(())
        results = (Unreadable(failed[0][1]) if failed else next(values) for failed in read.failed)
        pairs = [(samples[index], result) for index, result in zip(part, results, strict=True)]
        done = min(done + len(part) * processes, len(samples))
        report({"event": "video", "done": done, "videos": len(samples)})
        for sample, result in pairs:
            if isinstance(result, Unreadable):
                report(notice(f"{sample.video_id}: {result.reason}"))
        yield pairs


def compute_over_windows(
    model: OpenedModel,
    sample: Sample,
    compute: Compute,
    *,
    window: float | None,
    step: float | None,
    batch: int,
    report: Report,
    done: Sequence[Unreadable | None] = (),
) -> Iterator[list[tuple[Window, ViewTensors] | Unreadable]]:
    """Yield the items of `window_items` of each pass, with the values of their views in place of the views.

    Args:
        batch: windows in one forward pass, of one video: the values do not depend on other videos.
    """

    def read(report: Report) -> Iterator[Item]:
        return window_items(sample, model.views, window=window, step=step, report=report, done=done)

    items = read_ahead(read, batch, timeout=model.recipe.train.data_timeout, path=sample.path, report=report)
    while part := list(islice(items, batch)):
        clips = [item[1] for item in part if not isinstance(item, Unreadable)]
        values = _values_of_each(compute, torch.stack(clips)) if clips else iter(())
        for item in part:
            if isinstance(item, Unreadable) and not item.is_window:
                report(notice(f"{sample.video_id}: {item.reason}"))
        yield [item if isinstance(item, Unreadable) else (item[0], next(values)) for item in part]


def read_ahead(
    read: Callable[[Report], Iterator[Item]], number: int, *, timeout: float, path: str, report: Report
) -> Iterator[Item]:
    """Yield the items that `read` yields in another thread, up to so many ahead; pass on its reports.

    Raises:
        DataError: an item takes longer than `timeout` seconds (0: no limit).
    """
    found: Queue[Item | dict[str, Any] | Exception | None] = Queue(number)
    is_over = Event()

    def put(item: Item | dict[str, Any] | Exception | None) -> None:
        while not is_over.is_set():
            with suppress(Full):
                return found.put(item, timeout=STOP_SECONDS)

    def work() -> None:
        try:
            for item in read(put):
                put(item)
                if is_over.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    # A thread that waits for a file for ever does not keep the process from ending.
    Thread(target=work, daemon=True, name="everest reader").start()
    try:
        while True:
            try:
                item = found.get(timeout=timeout or None)
            except Empty:
                limit = f"{timeout:g} s (train.data_timeout)"
                raise DataError(f"no window within {limit} from {path}") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            if isinstance(item, dict):
                report(item)
            else:
                yield item
    finally:
        is_over.set()


def _values_of_each(compute: Compute, frames: Tensor) -> Iterator[ViewTensors]:
    """Compute the values of R videos or windows, (R, V, C, T, H, W), at once; yield those of each."""
    values = compute(frames.flatten(0, 1))
    by_video = {name: x.unflatten(0, frames.shape[:2]) for name, x in values.items()}  # (R, V, …) each
    return ({name: x[i] for name, x in by_video.items()} for i in range(len(frames)))
