"""Times the windows of a classifier over long recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Final

from everest.errors import DataError
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel
from everest.inference.videos import Batching, compute_over_windows
from everest.inference.windows import Unreadable
from everest.lists.sample import Sample
from everest.system.compute import time_calls
from everest.video.metadata import clear_video_cache
from everest_workflows.recordings.timelines import has_windows, timeline_job

TIMED_SECONDS: Final = 5.0  # default: seconds for which windows are timed


def time_windows(model: OpenedModel, samples: Sequence[Sample], windows: Batching) -> dict[str, float] | None:
    """Time the windows of a timeline over videos in turn, in this process.

    Returns:
        `window` and `step` in seconds, `batch` (windows in a forward pass), and `hours_per_hour`: hours of
        long recordings that an hour covers, with a window at each step. None: there is no default window.
    """
    if windows.window is None and not has_windows(model):
        return None
    job = timeline_job(model, samples, windows)
    compute = PieceModel.of_outputs(job.model)
    lengths: list[float] = []  # seconds per intact window

    def compute_batches() -> Iterator[None]:
        for sample in cycle(job.samples):
            clear_video_cache()
            for items in compute_over_windows(job.model, sample, compute, job.batching):
                intact = (item[0] for item in items if not isinstance(item, Unreadable))
                lengths.extend(window.end - window.start for window in intact)
                yield
            yield  # also of a video without windows

    batches = compute_batches()
    _, seconds = time_calls(lambda: next(batches), seconds=TIMED_SECONDS)
    if not lengths:
        raise DataError(
            f"{job.samples[0].path}: no intact window within {TIMED_SECONDS:g} s; try another --data"
        )
    step = job.batching.step or max(lengths)
    hours = len(lengths) * step / sum(seconds)
    return {"window": max(lengths), "step": step, "batch": job.batching.batch, "hours_per_hour": hours}
