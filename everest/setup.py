"""From a recipe's stage to a `Training` that is ready for its first step; a trial of one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from everest.build import ModelSpec, stage_optimizer
from everest.checkpoint import Weights
from everest.data.datasets import Clip, VideoClips
from everest.models.classifier import VideoClassifier
from everest.plan import StagePlan, fitting_micro_batch, plan_stage
from everest.run_folder import RunFolder
from everest.settings import FinetuneSettings, PretrainSettings, Recipe
from everest.training import Report, Training, make_accelerator, on_device, peak_memory, seed_from


def set_up_training(
    recipe: Recipe,
    stage: PretrainSettings | FinetuneSettings,
    spec: ModelSpec,
    weights: Weights,
    clips: VideoClips,
    run: RunFolder,
    *,
    cpu: bool,
    report: Report,
    start: Callable[[VideoClassifier], None] | None = None,
) -> Training:
    """Build what a stage trains and how.

    Args:
        weights: the header of the stage's `model.safetensors`.
        start: fills a fine-tuning model with a trained encoder.
    """
    accelerator = make_accelerator(recipe.train, cpu=cpu)
    plan = _plan(recipe, stage, spec, num_videos=len(clips), accelerator=accelerator)
    torch.manual_seed(seed_from(recipe.train.seed))
    model = spec.build()
    if start is not None and isinstance(model, VideoClassifier):
        start(model)
    if isinstance(stage, FinetuneSettings) and stage.freeze == "encoder":
        model.encoder.requires_grad_(False)
    model.to(accelerator.device)
    return Training(
        accelerator,
        model,
        stage_optimizer(model, stage, depth=spec.model.backbone_size.depth),
        plan=plan,
        settings=recipe.train,
        run=run,
        weights=weights,
        clips=clips,
        max_bad=recipe.data.max_bad,
        report=report,
    )


def _plan(
    recipe: Recipe,
    stage: PretrainSettings | FinetuneSettings,
    spec: ModelSpec,
    *,
    num_videos: int,
    accelerator: Accelerator,
) -> StagePlan:
    if isinstance(recipe.train.micro_batch, int):
        largest = recipe.train.micro_batch
    else:
        bytes_per_value = 4 if accelerator.mixed_precision == "no" else 2
        largest = fitting_micro_batch(spec.bytes_per_clip(bytes_per_value), accelerator.device)
    return plan_stage(
        stage, num_videos=num_videos, processes=accelerator.num_processes, largest_micro_batch=largest
    )


def try_one_pass(training: Training, loss_of: Callable[[Clip], Tensor]) -> dict[str, Any]:
    """Run one pass with its update on real clips, write nothing, and estimate the whole run from it."""
    training.model.train()
    began = time.monotonic()
    clip = training.first_batch()
    loaded = time.monotonic()
    loss = loss_of(on_device(clip, training.accelerator.device))
    training.accelerator.backward(loss)
    training.optimizer.step()
    value = loss.item()  # waits for the device
    seconds = time.monotonic() - loaded
    plan = training.plan
    return {
        "loss": value,
        "videos": len(training.clips),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "passes_per_step": plan.accumulation,
        "peak_lr": plan.peak_lr,
        "parameters": sum(p.numel() for p in training.trained_model.parameters()),
        "seconds_to_load": round(loaded - began, 2),
        "seconds_per_pass": round(seconds, 2),
        "hours": round(plan.steps * plan.accumulation * seconds / 3600, 2),
        "memory_bytes": peak_memory(training.accelerator.device),
    }
