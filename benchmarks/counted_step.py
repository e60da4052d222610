"""One pre-training step, as everest trains, on a device that computes nothing: run by gpu_counted.py.

Prints a JSON object: launches, copies, memory per clip, and the sums of each phase.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import torch
from roofline import Meter
from torch import nn

from everest.config.recipe import load_recipe
from everest.data.dataset import Clip
from everest.models.spec import ModelSpec
from everest.pretraining import pretraining_loss
from everest.profiling.profile import stage_spec
from everest.system.accelerator import make_accelerator
from everest.train.network import Network
from everest.train.optim import stage_optimizer
from everest.train.step_record import StepNumbers, StepRecord
from everest.train.update import Updater

WARM_UP = 2  # steps: the first allocates the optimizer's moments


class CountedStep:
    """The model of a recipe with all that a training step of one process does on the device."""

    def __init__(self, recipe_name: str, overrides: list[str]) -> None:
        recipe = load_recipe(recipe_name, overrides=overrides)
        self.spec: ModelSpec = stage_spec(recipe, "pretrain")
        self.accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=False)
        self.model: nn.Module = self.spec.build().to(self.accelerator.device).train()
        network = Network(module=self.model, optimizer=stage_optimizer(self.model, recipe.pretrain))
        self.updater = Updater(self.accelerator, [network], recipe.train)

    def clips(self, batch: int) -> Clip:
        """A batch on the device that contains nothing."""
        device = self.accelerator.device
        shape = (batch, 1, 3, self.spec.offered_frames, *self.spec.size)
        frames = torch.empty(shape, dtype=torch.uint8, device=device)
        noise = torch.empty(batch, 1, self.spec.grid.num_tokens, device=device)
        return cast(Clip, SimpleNamespace(frames=frames, noise=noise, tokens={}))

    def run(self, clips: Clip, meter: Meter | None = None) -> None:
        """One step, counted by phase with a meter."""
        record = StepRecord(self.accelerator.device)
        meter = meter or Meter()
        meter.phase = "normalize"
        with self.updater.one_pass(last=True):
            loss = pretraining_loss(self.updater.model, clips)
            meter.phase = "backward"
            record.add(loss, {}, passes=1)
            self.updater.backward([loss])
        meter.phase = "update"
        norms = self.updater.clip_gradients()
        numbers = StepNumbers(self.accelerator, record, norms)
        self.updater.step(numbers)


def device_counts() -> dict[str, int]:
    counts = ctypes.CDLL(os.environ["LD_PRELOAD"]).fake_cuda_counts
    counts.restype = ctypes.c_char_p
    return json.loads(counts())


def peak_bytes(step: CountedStep, batch: int) -> tuple[int, int]:
    """The most memory of a step, by torch's allocator: in all, and without weights, moments and clips."""
    clips = step.clips(batch)
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step.run(clips)
    peak = torch.cuda.max_memory_allocated()
    return peak, peak - resting


def counted(step: CountedStep, batch: int) -> dict[str, Any]:
    """The counts of a step after the first ones."""
    clips = step.clips(batch)
    for _ in range(WARM_UP):
        step.run(clips)
    before = device_counts()
    step.run(clips)
    after = device_counts()
    del clips
    (_, half), (peak, whole) = peak_bytes(step, batch // 2), peak_bytes(step, batch)
    return {
        "counts": {name: after[name] - before[name] for name in after},
        "peak_bytes": peak,
        "bytes_per_clip": (whole - half) / (batch - batch // 2),
    }


def phases(step: CountedStep, batch: int) -> dict[str, dict[str, float]]:
    """Traffic and time by phase; a compiled step cannot be taken apart."""
    clips, meter = step.clips(batch), Meter()
    meter.follow(step.model)
    with meter:
        step.run(clips, meter)
    meter.add_adamw(step.model)
    return {name: asdict(phase) for name, phase in meter.phases.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--no-phases", action="store_true")
    options = parser.parse_args()
    step = CountedStep(options.recipe, options.overrides)
    found = counted(step, options.batch)
    if not options.no_phases:
        found["phases"] = phases(step, options.batch)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
