"""Times the windows of a classifier over long recordings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain, cycle
from typing import Final

from everest.errors import DataError
from everest.inference.jobs import LongJob
from everest.inference.opened_model import OpenedModel
from everest.inference.videos import Passes, compute_over_windows
from everest.inference.windows import Unreadable
from everest.lists.sample import Sample
from everest.video.metadata import clear_video_cache
from everest_workflows.recordings.timelines import has_windows, timeline_job

TIMED_SECONDS: Final = 5.0  # default: seconds for which windows are timed


def time_windows(model: OpenedModel, samples: Sequence[Sample], windows: Passes) -> dict[str, float] | None:
    """Time the windows of a timeline, as `time_timeline`; None if the model has no default window."""
    if windows.window is None and not has_windows(model):
        return None
    return time_timeline(timeline_job(model, samples, windows))


def time_timeline(job: LongJob) -> dict[str, float]:
    """Time the windows of a timeline over its videos in turn, in this process.

    Returns:
        `window` and `step` in seconds, `batch` (windows in a forward pass), and `hours_per_hour`: hours of
        long recordings that an hour covers, with a window at each step.
    Raises:
        DataError: no window could be read within TIMED_SECONDS.
    """
    lengths: list[float] = []  # seconds per intact window
    samples = cycle(job.samples)
    started = time.perf_counter()
    elapsed = 0.0
    while elapsed <= TIMED_SECONDS:
        clear_video_cache()
        computed = compute_over_windows(job.model, next(samples), job.model.outputs, job.passes)
        for item in chain.from_iterable(computed):
            if not isinstance(item, Unreadable):
                lengths.append(item[0].end - item[0].start)
            if time.perf_counter() - started > TIMED_SECONDS:
                break
        elapsed = time.perf_counter() - started
    if not lengths:
        raise DataError(
            f"{job.samples[0].path}: no intact window within {TIMED_SECONDS:g} s; try another --data"
        )
    step = job.passes.step or max(lengths)
    hours = len(lengths) * step / elapsed
    return {"window": max(lengths), "step": step, "batch": job.passes.batch, "hours_per_hour": hours}
