"""The speed of a recipe on this machine: seconds of a step and of reading a clip, both measured here.

Every estimate of run time multiplies these two numbers. Nothing is estimated for a device that is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, repeat
from statistics import mean, median
from typing import Any, Final, Literal

import torch
from accelerate import Accelerator

from everest.checkpoints.frozen import build_with_teacher
from everest.config.settings import Recipe
from everest.config.values import StageName
from everest.data.clip_dataset import Batch, ClipDataset
from everest.data.loader import copy_to_device
from everest.data.recipe_clips import finetune_dataset, pretrain_dataset
from everest.engine.network import PlainTraining, prepare_model
from everest.engine.schedule import plan_stage
from everest.engine.step import set_lr
from everest.engine.training import Stage, Step
from everest.errors import EnvironmentProblem
from everest.models.classifier import VideoClassifier, soft_targets, supervised_loss
from everest.models.clip_spec import ModelSpec
from everest.profiling.profile import ProfiledStage, make_stage_spec, training_settings
from everest.system.accelerator import make_accelerator, peak_memory
from everest.system.compute import time_calls
from everest.system.processes import num_cores
from everest.system.text import time_text

WARMUP_STEPS: Final = 2  # untimed steps, which allocate, choose kernels and compile
TIMED_STEPS: Final = 5
MAX_SECONDS: Final = 30.0  # default: seconds after which no further step is timed
DEFAULT_BATCH: Final = {"cuda": 32, "mps": 4}  # default batch by device; 1 on a CPU
READING_SECONDS: Final = 2.0  # default: seconds for which reading is timed


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The measured seconds of a step and of reading a clip.

    Attributes:
        batch: clips of a step.
        read_seconds: seconds per clip with all readers at work; None: reading was not measured.
    """

    device: str
    precision: str
    batch: int
    step_seconds: float
    peak_memory_bytes: int
    read_seconds: float | None = None

    def split_seconds(self, clips: float, *, gpus: int = 1) -> tuple[float, float]:
        """Return the seconds of all steps, divided among the GPUs, and of reading all clips."""
        return clips * self.step_seconds / self.batch / gpus, clips * (self.read_seconds or 0.0)

    def seconds(self, clips: float, *, gpus: int = 1) -> float:
        """Return the time for some clips: steps and reading share the cores of a CPU, not those of a GPU."""
        steps, reading = self.split_seconds(clips, gpus=gpus)
        return steps + reading if self.device == "cpu" else max(steps, reading)

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --json`; `data_wait` is the fraction without steps."""
        values = {**vars(self), "clips_per_second": self.batch / self.step_seconds}
        if self.read_seconds is not None:
            steps, _ = self.split_seconds(1)
            values |= {"read_clips_per_second": 1 / self.read_seconds}
            values |= {"data_wait": 1 - steps / self.seconds(1)}
        return values


def measure_stage(
    recipe: Recipe, stage: ProfiledStage, *, batch: int | None = None, cpu: bool = False, reads: bool = False
) -> Speed:
    """Measure the steps of a stage on random pixels, and the reading of its videos, on this machine.

    A step of `pretrain` and `finetune` is a forward pass, a backward pass and an update, on new weights; a
    step of `eval` is a forward pass.

    Args:
        batch: clips of a step; None: as many as in DEFAULT_BATCH.
        cpu: measure on the CPU even if there is a GPU.
        reads: also measure reading; DataError if the videos cannot be found.
    """
    dataset = open_stage_dataset(recipe, stage) if reads and stage != "eval" else None
    accelerator = make_accelerator(recipe.train.precision, cpu=cpu)
    spec, device = make_stage_spec(recipe, stage), accelerator.device
    multiple = 2 * spec.compared_views if spec.compared_views > 1 else 1  # at least two videos
    clips = multiple * math.ceil((batch or DEFAULT_BATCH.get(device.type, 1)) / multiple)
    torch.manual_seed(recipe.train.seed)
    try:
        step = _make_step(recipe, stage, spec, accelerator, clips=clips)
        return _time_steps(step, accelerator, dataset, workers=recipe.train.workers, batch=clips)
    except torch.OutOfMemoryError as error:
        problem = f"out of memory with {clips} clips of {stage}"
        raise EnvironmentProblem(f"{problem}; try a smaller --batch") from error


def _time_steps(
    step: Callable[[], object],
    accelerator: Accelerator,
    dataset: ClipDataset | None,
    *,
    workers: int | Literal["auto"],
    batch: int,
) -> Speed:
    """Time steps of `batch` clips after untimed ones, and the reading of a data set if there is one."""
    device = accelerator.device
    time_calls(step, most=WARMUP_STEPS, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _, seconds = time_calls(step, most=TIMED_STEPS, seconds=MAX_SECONDS, device=device)
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        precision="fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        batch=batch,
        step_seconds=median(seconds),
        peak_memory_bytes=peak_memory(device),
        read_seconds=None if dataset is None else measure_reading(dataset, workers=workers),
    )


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


def open_stage_dataset(recipe: Recipe, stage: StageName) -> ClipDataset:
    """Open the data set of a training stage; DataError if the videos cannot be found."""
    if stage == "finetune":
        return finetune_dataset(recipe)[0]
    return pretrain_dataset(recipe, make_stage_spec(recipe, stage).noise_layout)


def measure_reading(dataset: ClipDataset, *, workers: int | Literal["auto"]) -> float:
    """Return the seconds to read a clip: of this process, divided among the workers."""
    dataset.read((0, 0))  # opens and indexes the file
    keys = ((epoch, epoch % len(dataset)) for epoch in count(1))
    _, seconds = time_calls(lambda: dataset.read(next(keys)), seconds=READING_SECONDS)
    readers = num_cores() if workers == "auto" else min(max(1, workers), num_cores())
    return mean(seconds) / dataset.views.num_views / readers


def plan_run(
    recipe: Recipe, stage: StageName, speed: Speed, *, videos: int, epochs: int | None = None, gpus: int = 1
) -> dict[str, Any]:
    """Multiply a measured speed by the clips of a run; return `"plan"` of `everest profile --json`.

    Args:
        epochs: number of epochs; None: as in the recipe.
        gpus: number of GPUs like the measured one, in this machine: they share its cores for reading.
    Returns:
        `hours` of the run; `limit`, `step` or `loader`, and the hours of each, `step_hours` and
        `loader_hours` (None: not measured); `batch`, the clips of the measured step; `fits`: true, as that
        step ran; `sentence`.
    """
    section = recipe.pretrain if stage == "pretrain" else recipe.finetune
    section = section if epochs is None else replace(section, epochs=epochs, steps=None)
    plan = plan_stage(section, num_videos=videos, processes=gpus, largest_micro_batch=section.batch_size)
    clips = plan.steps * plan.batch_size
    steps, reading = speed.split_seconds(clips, gpus=gpus)
    seconds = speed.seconds(clips, gpus=gpus)
    verb = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}[stage]
    epochs_text = "1 epoch" if plan.epochs == 1 else f"{plan.epochs:,} epochs"
    several = "" if gpus == 1 else f", {gpus} of them as fast as {gpus} times one"
    read = f"reading alone {time_text(reading)}" if reading else "reading is not included: add --data DIR"
    return {
        "gpus": gpus,
        "hours": seconds / 3600,
        "fits": True,
        "batch": speed.batch,
        "limit": "loader" if reading > steps else "step",
        "step_hours": steps / 3600,
        "loader_hours": reading / 3600 if reading else None,
        "sentence": (
            f"{verb} {recipe.model.backbone} on {videos:,} videos for {epochs_text} takes about "
            f"{time_text(seconds)}: steps alone {time_text(steps)}, {read} (measured here on {speed.device}, "
            f"{speed.batch} clips per step{several})"
        ),
    }


def try_step(stage: Stage) -> dict[str, Any]:
    """Time micro-batches with updates on a real batch, and estimate the time and memory of the run."""
    training, plan = stage.training, stage.training.plan
    accelerator, workers = training.context.accelerator, training.recipe.train.workers
    training.model.train()
    with closing(training.loader()) as loader:
        batch: Batch = copy_to_device(next(iter(loader)), accelerator.device)
    losses: list[float] = []

    def last_micro_batch() -> None:  # processes exchange gradients in this one
        step = Step(training, repeat(batch))
        for number, clips in enumerate(step.batches(), start=1):
            if number == plan.accumulation:
                micro_batch_losses = stage.losses(clips, step)
                step.backward(micro_batch_losses)
                losses.append(micro_batch_losses.model.item())
        step.update_weights()

    speed = _time_steps(
        last_micro_batch, accelerator, training.dataset, workers=workers, batch=plan.micro_batch
    )
    seconds = speed.seconds(plan.steps * plan.batch_size, gpus=accelerator.num_processes)
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
        "seconds_to_read": round(speed.read_seconds or 0.0, 3),
        "seconds_per_pass": round(speed.step_seconds, 3),
        "hours": round(seconds / 3600, 2),
        "memory_bytes": speed.peak_memory_bytes,
    }
