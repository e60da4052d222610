"""The kinds of device that recipes are suggested for, and the time of a stage at their assumed speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from everest.suggest.choices import Choice, Purpose


@dataclass(frozen=True, kw_only=True)
class Device:
    """The model and the batch that a kind of device can train in hours."""

    base: str  # recipe
    backbone: str
    side: int  # of a square of as many pixels as a frame
    tubelet: tuple[int, int, int]
    batch: int
    keep: float  # share of the tokens that fine-tuning from scratch encodes
    speed: int  # clips per second in fine-tuning with this share, assumed

    def clips_per_second(self, kept: float) -> int:
        """The assumed speed with another share of the tokens; fewer are no faster, because of the videos."""
        return round(self.speed * min(1.0, self.keep / kept))


DEVICES: Final = {
    "cpu": Device(
        base="small", backbone="vit-tiny", side=96, tubelet=(4, 8, 8), batch=16, keep=0.15, speed=60
    ),
    "8GB": Device(
        base="custom", backbone="vit-s", side=160, tubelet=(2, 16, 16), batch=32, keep=0.6, speed=100
    ),
    "24GB": Device(
        base="custom", backbone="vit-s", side=224, tubelet=(2, 16, 16), batch=64, keep=0.6, speed=150
    ),
    "80GB": Device(
        base="custom", backbone="vit-b", side=224, tubelet=(2, 16, 16), batch=128, keep=0.6, speed=200
    ),
}
STAGES: Final[dict[Purpose, tuple[str, ...]]] = {  # that a recipe is for
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
    """The steps of a stage, and its time at the assumed speed, without validations and probes."""

    stage: str
    steps: int
    batch_size: int
    clips_per_second: int  # assumed
    seconds: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        time = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return (
            f"{self.stage}: {self.steps} steps of {self.batch_size} clips, about {time} at "
            f"{self.clips_per_second} clips/s (assumed)"
        )


def stage_times(choices: Sequence[Choice], device_name: str, purpose: Purpose) -> list[StageTime]:
    """The time of each stage that a recipe of these choices is for."""
    device, values = DEVICES[device_name], {choice.key: choice.value for choice in choices}
    times = []
    for stage in STAGES[purpose]:
        steps, batch = values[f"{stage}.steps"], values[f"{stage}.batch_size"]
        speed = device.clips_per_second(values[f"{stage}.selection"]["keep_ratio"])
        times.append(StageTime(stage, steps, batch, speed, round(steps * batch / speed)))
    return times
