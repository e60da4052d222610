"""Timelines as a function for notebooks, with the results of the command; see everest.inference_api."""

from __future__ import annotations

from pathlib import Path

from everest.inference.opened_model import OpenedModel
from everest.inference.videos import Batching
from everest.inference_api import Videos, samples_of
from everest.models.classifier import Classifier
from everest.system.events import Emit, ignore_event
from everest_workflows.recordings.timelines import Timelines, compute_timelines, timeline_job


def timeline(
    model: Classifier,
    videos: Videos,
    *,
    window: float | None = None,
    step: float | None = None,
    data: str | Path | None = None,
    clips: int = 1,
    crops: int = 1,
    keep: float | None = None,
    batch: int = 1,
    precision: str | None = None,
    emit: Emit = ignore_event,
) -> Timelines:
    """Compute the probabilities of windows that slide over videos, as `everest timeline`.

    Args:
        window: seconds; None: those that `everest train` chose, with its step unless `step` is given, or for
            another model the length of a clip at the model's stride.
        step: seconds from the start of one window to the start of the next; None: `window`. If clips span
            their window, as with image weights, it is rounded to a multiple of the time between their frames.
        batch: windows in one forward pass. For the other arguments see `predict`.
    Returns:
        `videos`, each with `starts` and `ends` in seconds, (W,), and `outputs`, (W, outputs of all heads).
        `bouts(BoutRules(…))` gives the bouts of each video by head, `to_rows()` the document of `everest
        timeline --json`, and `save(path)` writes a file that `Timelines.load` reads. A video that is
        unreadable, or damaged at some frame, has `error`.
    Raises:
        CheckpointError, DataError, RecipeError: see `predict`; or a clip spans the whole video, so there is
            no default window; or `window` or `step` is below 0.001 or not finite.
    """
    opened = OpenedModel.of(model, clips=clips, crops=crops, keep=keep, precision=precision)
    batching = Batching(batch=batch, window=window, step=step, emit=emit)
    with compute_timelines(timeline_job(opened, samples_of(videos, data), batching)) as timelines:
        assert timelines is not None  # this is the only process
        return timelines
