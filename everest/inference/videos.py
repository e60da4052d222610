"""A model run over all views of videos, or of their windows.

B clips, R videos or windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from everest.data.clips import VideoClips
from everest.data.loader import batches, choose_workers
from everest.inference.model import OpenedModel, check_counts
from everest.inference.windows import Item, Unreadable, Window
from everest.lists.sample import Sample
from everest.system.events import Report, notice

ViewTensors = dict[str, Tensor]  # (V, …) each
Compute = Callable[[Tensor], ViewTensors]  # of clips (B, C, T, H, W) uint8, to tensors of B rows


def compute_over_videos(
    model: OpenedModel,
    samples: Sequence[Sample],
    compute: Compute,
    *,
    batch: int,
    report: Report,
    workers: int | None = None,
    done: int = 0,
) -> Iterator[list[tuple[Sample, ViewTensors | Unreadable]]]:
    """Yield batches of videos, each with the values of its views.

    Args:
        batch: videos in one forward pass.
        workers: processes that read videos; None: as the recipe's `train.workers`.
        done: number of videos that are done already; they are skipped.
    """
    check_counts(batch=batch)
    clips = VideoClips(
        samples,
        make_views=model.views,
        seed=0,
        num_noise=0,
        decoder=model.recipe.data.decoder,
        replace_bad=False,
    )
    parts = [range(first, min(first + batch, len(samples))) for first in range(done, len(samples), batch)]
    if not parts:
        return
    order = [[(0, index) for index in part] for part in parts]
    settings = model.recipe.train
    chosen = choose_workers(clips, order, settings.workers if workers is None else workers)
    loaded = batches(clips, order, workers=min(chosen, len(order) - 1), timeout=settings.data_timeout)
    for part, read in zip(parts, loaded, strict=True):
        readable = [row for row, failed in enumerate(read.failed) if not failed]
        values = _values_of_each(compute, read.frames[readable]) if readable else iter(())
        results = (Unreadable(failed[0][1]) if failed else next(values) for failed in read.failed)
        pairs = [(samples[index], result) for index, result in zip(part, results, strict=True)]
        report({"event": "video", "done": part[-1] + 1, "videos": len(samples)})
        for sample, result in pairs:
            if isinstance(result, Unreadable):
                report(notice(f"{sample.video_id}: {result.reason}"))
        yield pairs


def compute_over_windows(
    items: Iterator[Item], compute: Compute, *, batch: int, report: Report
) -> Iterator[tuple[Sample, tuple[Window, ViewTensors] | Unreadable]]:
    """Yield the items of `window_items` with the values of their views in place of the views.

    A `batch` of windows is computed in one forward pass, also those of several videos.
    """
    while part := list(islice(items, batch)):
        clips = [result[1] for _, result in part if not isinstance(result, Unreadable)]
        values = _values_of_each(compute, torch.stack(clips)) if clips else iter(())
        for sample, result in part:
            if isinstance(result, Unreadable) and not result.is_window:
                report(notice(f"{sample.video_id}: {result.reason}"))
            yield sample, result if isinstance(result, Unreadable) else (result[0], next(values))


def _values_of_each(compute: Compute, frames: Tensor) -> Iterator[ViewTensors]:
    """Compute the values of R videos or windows, (R, V, C, T, H, W), at once; yield those of each."""
    values = compute(frames.flatten(0, 1))
    by_video = {name: x.unflatten(0, frames.shape[:2]) for name, x in values.items()}  # (R, V, …) each
    return ({name: x[i] for name, x in by_video.items()} for i in range(len(frames)))
