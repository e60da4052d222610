"""The kinds of device that recipes are suggested for, and the measured time of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch

from everest.config.settings import Recipe
from everest.profiling.loading import TrainingStage, reading_speed, stage_clips
from everest.profiling.measure import measure
from everest.system.machine import num_cores

# The use of a recipe: pre-training only, a classifier from a pre-trained encoder, or one from scratch.
Purpose = Literal["pretrain", "finetune", "scratch"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """The model and the batch that a kind of device can train in hours."""

    base: str  # recipe
    backbone: str
    side: int  # of a square of as many pixels as a frame
    tubelet: tuple[int, int, int]
    batch: int
    keep: float  # share of the tokens that fine-tuning from scratch encodes


DEVICES: Final = {
    "cpu": Device(base="small", backbone="vit-tiny", side=96, tubelet=(4, 8, 8), batch=16, keep=0.15),
    "8GB": Device(base="custom", backbone="vit-s", side=160, tubelet=(2, 16, 16), batch=32, keep=0.6),
    "24GB": Device(base="custom", backbone="vit-s", side=224, tubelet=(2, 16, 16), batch=64, keep=0.6),
    "80GB": Device(base="custom", backbone="vit-b", side=224, tubelet=(2, 16, 16), batch=128, keep=0.6),
}
MEASURED_CLIPS: Final = 16  # our choice: of a measured step on a CPU
STAGES: Final[dict[Purpose, tuple[TrainingStage, ...]]] = {  # that a recipe is for
    "pretrain": ("pretrain",),
    "finetune": ("pretrain", "finetune"),
    "scratch": ("finetune",),
}


def this_device() -> str:
    """The name of the largest of `DEVICES` that this machine has."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    gpus = [name for name in DEVICES if name != "cpu"]
    fitting = [name for name in gpus if int(name.removesuffix("GB")) <= 1.1 * memory]
    return fitting[-1] if fitting else gpus[0]


class StageTime(NamedTuple):
    """The steps of a stage, and its time at a measured speed, without validations and probes."""

    stage: TrainingStage
    steps: int
    batch_size: int
    clips_per_second: float | None  # None: not measured
    seconds: int | None

    def __str__(self) -> str:
        text = f"{self.stage}: {self.steps} steps of {self.batch_size} clips"
        if self.seconds is None:
            return f"{text}; their time was not measured, because --device is another machine"
        minutes = self.seconds / 60
        time = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"{text}, about {time} at {self.clips_per_second:.0f} clips/s (measured)"


def stage_times(
    recipe: Recipe, purpose: Purpose, speeds: Mapping[TrainingStage, float], samples: Mapping[str, int]
) -> list[StageTime]:
    """The time of each stage of a suggested recipe.

    Args:
        speeds: of `measure_speeds`; empty if they were not measured.
        samples: of each stage, for epochs.
    """
    times = []
    for stage in STAGES[purpose]:
        settings, speed = getattr(recipe, stage), speeds.get(stage)
        batch = settings.batch_size
        steps = settings.steps or max(1, settings.epochs * samples[stage] // batch)
        seconds = None if speed is None else round(steps * batch / speed)
        times.append(StageTime(stage, steps, batch, speed, seconds))
    return times


def measure_speeds(recipe: Recipe, purpose: Purpose, *, cpu: bool) -> dict[TrainingStage, float]:
    """Measure the clips/s of the stages of a recipe on this machine: some steps, and reading the videos.

    Args:
        cpu: use the CPU even if there is a GPU.
    """
    speeds = {}
    for stage in STAGES[purpose]:
        step = measure(recipe, stage, batch=MEASURED_CLIPS if cpu else None, cpu=cpu)["clips_per_second"]
        read = reading_speed(stage_clips(recipe, stage)) * num_cores()
        # On a CPU, steps and reading share the cores; on a GPU, the slower one counts.
        speeds[stage] = 1 / (1 / step + 1 / read) if cpu else min(step, read)
    return speeds
