"""Measures time and peak memory of steps on random pixels, and whether the loader keeps up."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from itertools import repeat
from typing import Any, Final

import torch
from accelerate import Accelerator

from everest.checkpoints.frozen import build_with_teacher
from everest.config.settings import Recipe
from everest.config.stage_settings import STAGES, StageName
from everest.data.clip_dataset import ClipDataset, StepSampler
from everest.data.frames import find_sampling
from everest.data.loader import choose_workers, copy_to_device, divide_batches, read_batches
from everest.data.recipe_clips import apply_resize_setting, finetune_dataset, pretrain_dataset
from everest.engine.network import prepare_model
from everest.engine.plain_training import PlainTraining
from everest.engine.step import set_lr
from everest.engine.training import Stage, Step
from everest.errors import EnvironmentProblem
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.clip_spec import ModelSpec
from everest.profiling.profile import PROFILED_STAGES, ProfiledStage, make_stage_spec, training_settings
from everest.system.accelerator import make_accelerator, peak_memory
from everest.system.processes import num_readers
from everest.video.reader import is_fast_to_read
from everest.video.stream import VideoError

WARMUP_STEPS: Final = 2  # untimed steps, which allocate, choose kernels and compile
TIMED_STEPS: Final = 5
DEFAULT_BATCH: Final = {"cuda": 32, "mps": 4}  # default batch by device; 1 on a CPU

LOADER_SECONDS: Final = 10.0  # default: seconds for which the loader is timed
READING_SECONDS: Final = 2.0  # default: seconds for which reading in this process is timed
CODECS_EXAMINED: Final = 16  # default: number of videos whose codec is read
# Speedup of decoding a clip from Motion JPEG instead of H.264 with a keyframe every 12 frames: 16 of 61
# frames, 320 x 240 (docs/performance.md). Larger frames and rarer keyframes gain more.
MJPEG_GAIN: Final = 3.2


def time_stages(
    recipe: Recipe, *, batch: int | None, with_loader: bool, cpu: bool
) -> dict[ProfiledStage, dict[str, Any]]:
    """Measure the steps of all stages.

    Args:
        with_loader: also measure the loader of each stage that has videos.

    Returns:
        For each stage, `measured` (see `time_steps`) and, if measured, `loading` (see `time_loader`).
    """
    loading: tuple[StageName, ...] = ()
    if with_loader:
        loading = STAGES if recipe.data.train else ("pretrain",)
    for stage in loading:  # missing videos are reported before anything is measured
        open_stage_dataset(recipe, stage)
    stages: dict[ProfiledStage, dict[str, Any]] = {}
    for stage in PROFILED_STAGES:
        stages[stage] = {"measured": time_steps(recipe, stage, batch=batch, cpu=cpu)}
    for stage in loading:
        step = stages[stage]["measured"]
        stages[stage]["loading"] = time_loader(
            recipe, stage, batch=step["batch"], step_clips_per_second=step["clips_per_second"], cpu=cpu
        )
    return stages


def time_steps(
    recipe: Recipe, stage: ProfiledStage, *, batch: int | None = None, cpu: bool = False
) -> dict[str, Any]:
    """Measure steps on the first available device, or with `cpu` on the CPU.

    A step of `pretrain` and `finetune` is a forward pass, a backward pass and an update, on new weights; a
    step of `eval` is a forward pass. A step has `batch` clips, by default as many as in DEFAULT_BATCH.
    """
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=cpu)
    spec, device = make_stage_spec(recipe, stage), accelerator.device
    multiple = 2 * spec.compared_views if spec.compared_views > 1 else 1  # at least two videos
    clips = multiple * math.ceil((batch or DEFAULT_BATCH.get(device.type, 1)) / multiple)
    torch.manual_seed(recipe.train.seed)
    try:
        step = _make_step(recipe, stage, spec, accelerator, clips=clips)
        _time_calls(step, WARMUP_STEPS, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        timed = _time_calls(step, TIMED_STEPS, device)
    except torch.OutOfMemoryError as error:
        problem = f"out of memory with {clips} clips of {stage}"
        raise EnvironmentProblem(f"{problem}; try a smaller --batch") from error
    median = statistics.median(timed)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "batch": clips,
        "step_seconds": {"median": median, "min": min(timed), "max": max(timed)},
        "clips_per_second": clips / median,
        "peak_memory_bytes": peak_memory(device),
    }


def _make_step(
    recipe: Recipe, stage: ProfiledStage, spec: ModelSpec, accelerator: Accelerator, *, clips: int
) -> Callable[[], object]:
    """Make a function that computes a step of a new model, each time on the same random clips."""
    settings, device = training_settings(recipe, stage), accelerator.device
    model = build_with_teacher(spec, recipe).to(device).train(settings is not None)
    shape = (clips, spec.channels, spec.candidate_frames, *spec.size)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    if settings is None:
        return torch.no_grad()(partial(prepare_model(accelerator, model, recipe.train), frames))
    training = PlainTraining(accelerator, model, settings, recipe.train)
    set_lr(training.network.optimizer, 1e-6)  # not 0, so that weights change as in training
    if not isinstance(model, VideoClassifier):
        return lambda: training.step(training.model(frames).loss)
    heads, noise = model.heads, torch.rand(clips, spec.grid.num_tokens, device=device)
    labels = torch.zeros(clips, sum(head.label_width for head in heads), device=device)
    targets = soft_targets(labels, heads, smoothing=recipe.finetune.label_smoothing)  # (B, outputs)

    def finetune() -> None:
        logits = training.model(spec.pixels.normalize(frames), noise=noise).float()  # (B, outputs)
        training.step(supervised_loss(logits, targets, heads, [None] * len(heads)))

    return finetune


def try_step(stage: Stage) -> dict[str, Any]:
    """Run two passes with updates on real clips, and estimate the run's time and memory; writes nothing."""
    training, plan = stage.training, stage.training.plan
    device = training.context.accelerator.device
    training.model.train()
    started = time.perf_counter()
    with closing(training.loader()) as loader:
        batch = copy_to_device(next(iter(loader)), device)
    loaded = time.perf_counter()
    losses: list[float] = []

    def last_pass() -> None:  # processes exchange gradients in this pass
        step = Step(training, repeat(batch))
        for number, clips in enumerate(step.batches(), start=1):
            if number == plan.accumulation:
                pass_losses = stage.losses(clips, step)
                step.backward(pass_losses)
                losses.append(pass_losses.model.item())
        step.update_weights()

    _, seconds = _time_calls(last_pass, 2, device)
    return {
        "loss": losses[0],
        "videos": len(training.dataset),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "passes_per_step": plan.accumulation,
        "peak_lr": plan.peak_lr,
        "parameters": sum(p.numel() for p in training.trained_model.parameters()),
        "trained_parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
        "seconds_to_load": round(loaded - started, 2),
        "seconds_per_pass": round(seconds, 3),
        "hours": round(plan.steps * plan.accumulation * seconds / 3600, 2),
        "memory_bytes": peak_memory(device),
    }


def _time_calls(work: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Return the seconds of each call, including the work of the device."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def open_stage_dataset(recipe: Recipe, stage: StageName) -> ClipDataset:
    """Open the data set of a training stage; DataError if the videos cannot be found."""
    return pretrain_dataset(recipe) if stage == "pretrain" else finetune_dataset(recipe)[0]


def time_loader(
    recipe: Recipe, stage: StageName, *, batch: int, step_clips_per_second: float, cpu: bool = False
) -> dict[str, Any]:
    """Measure the speed of a stage's loader and of one process, and whether the step waits for the loader.

    Loader and step are measured separately; in training, they share the CPU if the step runs on it.

    Args:
        batch: clips per step.
        step_clips_per_second: the speed of the step alone.
        cpu: the step runs on the CPU even if there is a GPU, so crops are not resized on the GPU.
    """
    device = torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda")
    dataset = apply_resize_setting(open_stage_dataset(recipe, stage), recipe.data.resize, device)
    views = dataset.make_views.num_views
    samples = max(1, batch // views)
    order = StepSampler(
        num_samples=len(dataset),
        samples_per_step=samples,
        num_steps=1_000_000,  # more steps than fit into the time
        samples_per_epoch=len(dataset),
        seed=recipe.train.seed,
        odds=dataset.sampling_odds,
    )
    workers = choose_workers(dataset, order, recipe.train.workers)
    with closing(read_batches(dataset, order, workers=workers, timeout=recipe.train.data_timeout)) as loaded:
        for _ in range(divide_batches(dataset, order, workers=workers).num_slots):
            next(loaded)  # batches that are read ahead would distort the rate
        speed = _measure_call_rate(lambda _: next(loaded), LOADER_SECONDS) * samples * views
    alone = measure_reading_speed(dataset)
    data_wait = max(0.0, 1 - speed / step_clips_per_second)
    return {
        "workers": workers,
        "clips_per_second": speed,
        "clips_per_second_of_one_process": alone,
        "step_clips_per_second": step_clips_per_second,
        "data_wait": data_wait,  # share of the time of a step
        "changes": _suggest_loading_changes(dataset, workers, alone) if data_wait else {},
    }


def _suggest_loading_changes(dataset: ClipDataset, workers: int, clips_per_second: float) -> dict[str, float]:
    """Suggest changes that make the loader faster, with the expected factor of each; largest factor first.

    Several clips from one decode are not suggested, because they cost accuracy (docs/performance.md).

    Args:
        clips_per_second: the speed of this process alone.
    """
    views = dataset.make_views

    def decode(number: int) -> None:
        # The time until an unreadable video fails counts, because training loses it as well.
        with suppress(VideoError):
            reader = views.make_reader(dataset.samples[number % len(dataset)], dataset.decoder)
            views.decode(reader, find_sampling(views.sampling).center)

    changes = {f"train.workers={num_readers()}": num_readers() / max(1, workers)}
    is_slow = False
    for sample in dataset.samples[:CODECS_EXAMINED]:
        with suppress(VideoError):  # training replaces unreadable videos, so their codec is irrelevant
            is_slow = is_slow or not is_fast_to_read(sample.video)
    if is_slow:
        seconds = views.num_views / clips_per_second  # per sample
        decoding = min(seconds, 1 / _measure_call_rate(decode, READING_SECONDS))
        faster = seconds - decoding * (1 - 1 / MJPEG_GAIN)
        changes["everest prepare encode --codec mjpeg"] = seconds / faster
    stated = {change: factor for change, factor in changes.items() if factor > 1.1}  # heuristic
    return dict(sorted(stated.items(), key=lambda item: -item[1]))


def measure_reading_speed(dataset: ClipDataset) -> float:
    """Return the clips per second that this process reads alone."""
    dataset.read((0, 0))  # opens and indexes the file
    samples = _measure_call_rate(lambda epoch: dataset.read((epoch, epoch % len(dataset))), READING_SECONDS)
    return samples * dataset.make_views.num_views


def _measure_call_rate(work: Callable[[int], object], seconds: float) -> float:
    """Return the calls per second of `work`, over the calls that begin within `seconds`."""
    began = time.perf_counter()
    calls = 0
    spent = 0.0
    while spent <= seconds:
        calls += 1
        work(calls)
        spent = time.perf_counter() - began
    return calls / spent
