"""A pre-training step as everest trains on a device: the model of a recipe, its update and its clips.

    python benchmarks/training_step.py RECIPE --set train.compile=false

Prints launches, copies and memory of a step as JSON, on a device that computes nothing
(tests/everest/fake_cuda) and runs without compilation.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from everest.config.recipe import load_recipe
from everest.data.clip_dataset import Batch
from everest.engine.plain_training import PlainTraining
from everest.engine.step import set_lr
from everest.models.clip_spec import ModelSpec
from everest.pretraining import pretraining_output
from everest.profiling.profile import make_stage_spec
from everest.system.accelerator import make_accelerator

LEARNING_RATE = 1e-6  # small, so that the weights remain close to their initialization

Loss = Callable[[Batch], Tensor]
WARM_UP = 2  # steps that are not counted: the first allocates the optimizer's moments


class TrainingStep:
    """All that a training step of one process does on the device.

    Attributes:
        loss: of a batch; replace it to train another implementation of the same model.

    Args:
        model: trained in place of the recipe's model; its `loss` must be given as well.
    """

    def __init__(self, recipe_name: str, overrides: list[str], *, model: nn.Module | None = None) -> None:
        recipe = load_recipe(recipe_name, overrides=overrides)
        self.spec: ModelSpec = make_stage_spec(recipe, "pretrain")
        self.accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=False)
        self.device = self.accelerator.device
        torch.manual_seed(0)
        self.model = (model or self.spec.build()).to(self.device).train()
        training = PlainTraining(self.accelerator, self.model, recipe.pretrain, recipe.train)
        set_lr(training.network.optimizer, LEARNING_RATE)
        self._training = training
        self.loss: Loss = lambda clips: pretraining_output(training.model, clips).loss

    def clips(self, batch: int, *, random: bool = False) -> Batch:
        """A batch on the device, of random bytes or of no known content."""
        shape = (batch, 1, 3, self.spec.candidate_frames, *self.spec.size)
        frames = torch.empty(shape, dtype=torch.uint8, device=self.device)
        noise = torch.empty(batch, 1, self.spec.grid.num_tokens, device=self.device)
        if random:
            frames.random_(0, 256)
            noise.uniform_()
        return cast(Batch, SimpleNamespace(frames=frames, noise=noise, inputs={}))

    def run(self, clips: Batch) -> Tensor:
        """One step. Returns the loss, on the device."""
        loss = self.loss(clips)
        self._training.step(loss)
        return loss.detach()


def peak_bytes(step: TrainingStep, clips: Batch) -> tuple[int, int]:
    """The most memory of a step, by torch's allocator: in all, and without weights, moments and clips."""
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step.run(clips)
    peak = torch.cuda.max_memory_allocated()
    return peak, peak - resting


def device_counts() -> dict[str, int]:
    counts = ctypes.CDLL(os.environ["LD_PRELOAD"]).fake_cuda_counts
    counts.restype = ctypes.c_char_p
    return json.loads(counts())


def counted(step: TrainingStep, batch: int) -> dict[str, Any]:
    """The counts of a step after the first ones."""
    clips = step.clips(batch)
    for _ in range(WARM_UP):
        step.run(clips)
    before = device_counts()
    step.run(clips)
    after = device_counts()
    del clips
    peaks = {}
    for size in (batch // 2, batch):  # the second step is measured: a first one may compile
        clips = step.clips(size)
        step.run(clips)
        peaks[size] = peak_bytes(step, clips)
        del clips
    (_, half), (peak, whole) = peaks.values()
    return {
        "counts": {name: after[name] - before[name] for name in after},
        "peak_bytes": peak,
        "bytes_per_clip": (whole - half) / (batch - batch // 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    print(json.dumps(counted(TrainingStep(options.recipe, options.overrides), options.batch)))


if __name__ == "__main__":
    main()
