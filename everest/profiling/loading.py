"""Speed of the loader on a recipe's videos compared with the training step, and remedies if it is slower."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Literal

from everest.config.settings import Recipe
from everest.data.dataset import StepSampler, VideoClips
from everest.data.loader import batches, choose_workers, make_loader
from everest.data.stages import finetune_clips, pretrain_clips, pretrain_key
from everest.errors import DataError, RecipeError
from everest.lists.stage import find_source
from everest.system.cores import num_cores
from everest.video.file import VideoInfo
from everest.video.reader import VideoError, probe

TrainingStage = Literal["pretrain", "finetune"]
STAGES: Final[tuple[TrainingStage, ...]] = ("pretrain", "finetune")
SECONDS: Final = 10.0  # our choice: how long the loader is timed
ITEM_SECONDS: Final = 2.0  # our choice: how long reading in this process is timed
VIEWS: Final = 4  # our choice: the value of pretrain.views_per_decode that is tried
OVERSIZE: Final = 1.5  # our choice: short side of a file / of a clip, above which smaller files pay


def measure_loading(
    recipe: Recipe, stage: TrainingStage, *, batch: int, step_clips_per_second: float
) -> dict[str, Any]:
    """Measure clips per second of a stage's loader and of one process, and whether loader or step waits.

    Loader and step are measured one after the other; if the step runs on the CPU, they share it in training.

    Args:
        batch: clips in a step.
        step_clips_per_second: of the step alone.
    """
    clips = stage_clips(recipe, stage)
    loaded, workers = _loader_speed(clips, recipe, batch)
    alone = reading_speed(clips)
    waiting = max(0.0, 1 - loaded / step_clips_per_second)
    return {
        "workers": workers,
        "clips_per_second": loaded,
        "clips_per_second_of_one_process": alone,
        "step_clips_per_second": step_clips_per_second,
        "waits": "step" if waiting > 0 else "loader",
        "data_wait": waiting,  # share of a step's time
        "helps": list(_remedies(recipe, stage, clips, alone)) if waiting > 0 else [],
    }


def stage_clips(recipe: Recipe, stage: TrainingStage) -> VideoClips:
    """Return the clips of a training stage; DataError if the videos cannot be found."""
    return pretrain_clips(recipe) if stage == "pretrain" else finetune_clips(recipe)[0]


def readable_stages(recipe: Recipe, *, notify: Callable[[str], None]) -> list[TrainingStage]:
    """Return the stages for which the recipe has videos: unlabeled ones serve pre-training alone.

    Args:
        notify: receives a line for a stage that is left out.
    """
    found: list[TrainingStage] = []
    for stage, key in zip(STAGES, (pretrain_key(recipe.data), "train"), strict=True):
        try:
            find_source(recipe.data, key, labeled=stage == "finetune")
        except (DataError, RecipeError) as error:
            if stage == STAGES[-1] and not found:
                raise
            notify(f"{stage} is measured without videos: {error}")
        else:
            found.append(stage)
    return found


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
    loader = make_loader(clips, order, workers=workers, timeout=recipe.train.data_timeout)
    loaded = batches(loader)
    try:
        for _ in range(loader.division().slots):  # batches that are read ahead would distort the rate
            next(loaded)
        return _speed(lambda _: next(loaded), SECONDS) * samples * views, workers
    finally:
        loaded.close()


def reading_speed(clips: VideoClips) -> float:
    """Return clips/s that this process reads by itself."""

    def read(epoch: int) -> None:
        clips.read((epoch, epoch % len(clips)))

    read(0)  # opens and indexes the file
    return _speed(read, ITEM_SECONDS) * clips.make_views.num_views


def _speed(work: Callable[[int], object], seconds: float) -> float:
    """Return calls per second, of those that begin within `seconds`."""
    began, calls, spent = time.perf_counter(), 0, 0.0
    while spent <= seconds:
        calls += 1
        work(calls)
        spent = time.perf_counter() - began
    return calls / spent


def _remedies(recipe: Recipe, stage: TrainingStage, clips: VideoClips, alone: float) -> Iterator[str]:
    """Yield remedies for a slow loader, measured gains first."""
    settings = recipe.pretrain
    if stage == "pretrain" and settings.objective == "pixels" and settings.views_per_decode < VIEWS:
        many = pretrain_clips(replace(recipe, pretrain=replace(settings, views_per_decode=VIEWS)))
        gain = reading_speed(many) / alone
        yield f"pretrain.views_per_decode={VIEWS}: {gain:.1f} times as many clips (measured)"
    cores = num_cores()
    if recipe.train.num_workers < cores:
        yield f"train.workers={cores}: this machine has {cores} cores"
    info, side = _first_readable(clips), min(recipe.data.frame_size)
    if info is not None and min(info.height, info.width) > OVERSIZE * side:
        yield (
            f"everest prepare encode: the first video has {info.width}x{info.height} pixels, a clip "
            f"{side} on its short side"
        )
    if recipe.data.cache == "none":
        yield "data.cache=disk: for sets whose decoded frames fit"


def _first_readable(clips: VideoClips) -> VideoInfo | None:
    """The first video that can be read; training leaves out the others, too."""
    for sample in clips.samples:
        with suppress(VideoError):
            return probe(sample.video)
    return None
