"""A trial of a stage: two passes, and an estimate of the whole run, for --dry-run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from everest.data.dataset import Clip
from everest.data.loader import batches, on_device
from everest.engine.training import Training
from everest.system.accelerator import peak_memory

# The losses of a pass: first the model's, then one for each other network that is active.
LossesOf = Callable[[Clip], Sequence[Tensor]]


def try_one_pass(training: Training, losses_of: LossesOf) -> dict[str, Any]:
    """Run two passes with updates on real clips and write nothing; the second one is timed.

    Returns:
        The plan, the loss, and the estimated time and memory of the run.
    """

    def one_pass() -> float:
        training.seed(0)
        losses = losses_of(clip)
        training.backward(losses)
        training.step(training.clip_gradients())
        return losses[0].item()  # waits for the device

    training.model.train()
    started = time.monotonic()
    clip = on_device(next(batches(training.loader())), training.accelerator.device)
    loaded = time.monotonic()
    loss = one_pass()
    warm = time.monotonic()
    one_pass()
    seconds = time.monotonic() - warm
    plan = training.plan
    return {
        "loss": loss,
        "videos": len(training.clips),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "passes_per_step": plan.accumulation,
        "peak_lr": plan.peak_lr,
        "parameters": sum(p.numel() for p in training.state.trained_model.parameters()),
        "trained_parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
        "seconds_to_load": round(loaded - started, 2),
        "seconds_per_pass": round(seconds, 3),
        "hours": round(plan.steps * plan.accumulation * seconds / 3600, 2),
        "memory_bytes": peak_memory(training.accelerator.device),
    }
