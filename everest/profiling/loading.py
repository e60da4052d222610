"""Speed of the loader on a recipe's videos compared with the training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

import torch

from everest.config.settings import Recipe
from everest.data.dataset import StepSampler, VideoClips
from everest.data.frames import sampling
from everest.data.loader import batches, choose_workers, divide_batches
from everest.data.recipe_clips import finetune_clips, pretrain_clips, resized_by
from everest.data.views import PretrainViews
from everest.lists.sample import Sample
from everest.system.processes import num_readers
from everest.video.reader import is_fast_to_read
from everest.video.stream import VideoError

TrainingStage = Literal["pretrain", "finetune"]
SECONDS: Final = 10.0  # our choice: how long the loader is timed
ITEM_SECONDS: Final = 2.0  # our choice: how long reading in this process is timed
WORTH_IT: Final = 1.1  # our choice: a smaller factor is not stated
LOOKED_AT: Final = 16  # our choice: videos whose codec is looked at
# How much faster the frames of a clip are decoded from Motion JPEG than from H.264 with a keyframe every 12
# frames: 16 of 61 frames, 320 x 240 (docs/performance.md). Larger frames and rarer keyframes gain more.
MJPEG_GAIN: Final = 3.2


def measure_loading(
    recipe: Recipe,
    stage: TrainingStage,
    *,
    batch: int,
    step_clips_per_second: float,
    cpu: bool = False,
) -> dict[str, Any]:
    """Measure clips per second of a stage's loader and of one process, and whether loader or step waits.

    Loader and step are measured one after the other; if the step runs on the CPU, they share it in training.

    Args:
        batch: clips in a step.
        step_clips_per_second: of the step alone.
        cpu: the step is on the CPU even if there is a GPU, which would resize crops.
    """
    device = torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda")
    clips = resized_by(stage_clips(recipe, stage), recipe.data.resize, device)
    loaded, workers = _loader_speed(clips, recipe, batch)
    waiting = max(0.0, 1 - loaded / step_clips_per_second)
    alone = reading_speed(clips)
    return {
        "workers": workers,
        "clips_per_second": loaded,
        "clips_per_second_of_one_process": alone,
        "step_clips_per_second": step_clips_per_second,
        "waits": "step" if waiting > 0 else "loader",
        "data_wait": waiting,  # share of a step's time
        "changes": loading_changes(clips, workers=workers, clips_per_second=alone) if waiting else {},
    }


def loading_changes(clips: VideoClips, *, workers: int, clips_per_second: float) -> dict[str, float]:
    """Changes that make the loader faster, each with the expected factor; the largest first.

    Args:
        clips_per_second: that this process reads.
    """
    views = clips.make_views
    seconds = views.num_views / clips_per_second  # of a sample
    decoding = 0.0
    if not clips.cache:
        decoding = min(seconds, 1 / _speed(lambda number: _decode(clips, number), ITEM_SECONDS))
    changes = {f"train.workers={num_readers()}": num_readers() / max(1, workers)}
    if any(_is_slow_to_read(sample) for sample in clips.samples[:LOOKED_AT]):
        faster = seconds - decoding * (1 - 1 / MJPEG_GAIN)
        changes["everest prepare encode --codec mjpeg"] = seconds / faster
    if isinstance(views, PretrainViews) and not views.compared:
        number = 2 * views.num_views
        changes[f"pretrain.views_per_decode={number}"] = 2 * seconds / (2 * seconds - decoding)
    stated = {change: factor for change, factor in changes.items() if factor > WORTH_IT}
    return dict(sorted(stated.items(), key=lambda item: -item[1]))


def _decode(clips: VideoClips, number: int) -> None:
    """Decode the frames of a clip in the middle of a video."""
    views = clips.make_views
    with suppress(VideoError):  # training replaces it
        views.decoded(
            clips.samples[number % len(clips)], clips.decoder, None, sampling(views.sampling).center
        )


def _is_slow_to_read(sample: Sample) -> bool:
    with suppress(VideoError):
        return not is_fast_to_read(sample.video)
    return False


def stage_clips(recipe: Recipe, stage: TrainingStage) -> VideoClips:
    """Return the clips of a training stage; DataError if the videos cannot be found."""
    return pretrain_clips(recipe) if stage == "pretrain" else finetune_clips(recipe)[0]


def _loader_speed(clips: VideoClips, recipe: Recipe, batch: int) -> tuple[float, int]:
    """Return clips/s after the batches that are read ahead, and the number of workers."""
    views = clips.make_views.num_views
    samples = max(1, batch // views)
    order = StepSampler(
        num_samples=len(clips),
        batch_size=samples,
        steps=1_000_000,  # more than fit into the time
        samples_per_epoch=len(clips),
        seed=recipe.train.seed,
        weights=clips.sample_weights,
    )
    workers = choose_workers(clips, order, recipe.train.workers)
    loaded = batches(clips, order, workers=workers, timeout=recipe.train.data_timeout)
    slots = divide_batches(clips, order, workers=workers).slots
    try:
        for _ in range(slots):  # batches that are read ahead would distort the rate
            next(loaded)
        return _speed(lambda _: next(loaded), SECONDS) * samples * views, workers
    finally:
        loaded.close()


def reading_speed(clips: VideoClips) -> float:
    """Return clips/s that this process reads by itself."""
    clips.read((0, 0))  # opens and indexes the file
    samples = _speed(lambda epoch: clips.read((epoch, epoch % len(clips))), ITEM_SECONDS)
    return samples * clips.make_views.num_views


def _speed(work: Callable[[int], object], seconds: float) -> float:
    """Return calls per second, of those that begin within `seconds`."""
    began, calls, spent = time.perf_counter(), 0, 0.0
    while spent <= seconds:
        calls += 1
        work(calls)
        spent = time.perf_counter() - began
    return calls / spent
