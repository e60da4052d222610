"""From a recipe's stage to a `Training` that is ready for its first step; a trial of one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from everest.config.settings import FinetuneSettings, PretrainSettings, Recipe
from everest.config.tokenizer import TokenizerSettings
from everest.data.bad_videos import BadVideos
from everest.data.dataset import Clip, VideoClips
from everest.data.loader import batches, on_device
from everest.data.stages import fingerprint
from everest.errors import RecipeError
from everest.models.block import Block
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.system.accelerator import bytes_per_value, peak_memory
from everest.system.events import Report, notice
from everest.system.randomness import Purpose, seed_at
from everest.system.run_folder import PLAN, RunFolder
from everest.system.run_lock import claim, release
from everest.system.storage import parse_location
from everest.system.weights import Weights
from everest.tokenizer.spec import TokenizerSpec
from everest.train.adversary import Adversary
from everest.train.optim import stage_optimizer
from everest.train.plan import StagePlan, fitting_micro_batch, memory_advice, plan_stage
from everest.train.tracking import make_tracker
from everest.train.training import Training

Stage = PretrainSettings | FinetuneSettings | TokenizerSettings
# Of a pass: the model's loss, and its adversary's where one plays.
LossesOf = Callable[[Clip], tuple[Tensor, Tensor | None]]

USUAL_LR = (1e-5, 4e-3)  # ours: where the recipes' learning rates lie, with some room


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a stage runs and what it tells."""

    accelerator: Accelerator
    run: RunFolder
    resumed: bool  # the folder holds the run already
    report: Report
    tracker: str = "none"  # everest.tracking
    one_batch: bool = False  # learn the first batch by heart, to see whether anything can be learned


def set_up_training(
    recipe: Recipe,
    stage: Stage,
    spec: ModelSpec | TokenizerSpec,
    clips: VideoClips,
    place: RunContext,
    *,
    classes: tuple[str, ...] | None = None,
    start: Callable[[VideoClassifier], None] | None = None,
    adversary: Adversary | None = None,
    bytes_beside: Callable[[int], int] = lambda bytes_per_value: 0,
) -> Training:
    """Build what a stage trains and how.

    Args:
        classes: names for the header of `model.safetensors`.
        start: fills a fine-tuning model with a trained encoder.
        adversary: learns against the model, in the same steps.
        bytes_beside: memory that a clip needs in a pass of other networks, by the bytes of a value.
    """
    accelerator = place.accelerator
    videos = {
        "videos": len(clips),
        "samples": fingerprint(clips.samples, parse_location(recipe.data.root), classes),
    }
    bytes_of, value_bytes = partial(_bytes_per_clip, spec, bytes_beside), bytes_per_value(accelerator)
    plan = _plan(recipe, stage, bytes_of(recipe.train.checkpointing, value_bytes), place, videos)
    torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
    model = spec.build()
    if start is not None and isinstance(model, VideoClassifier):
        start(model)
    if isinstance(stage, FinetuneSettings) and stage.freeze == "encoder":
        model.encoder.requires_grad_(False)
    model.to(accelerator.device)
    _shard(recipe, model, accelerator)
    return Training(
        accelerator,
        model,
        stage_optimizer(model, stage, depth=spec.depth),
        plan=plan,
        settings=recipe.train,
        run=place.run,
        weights=Weights(kind=spec.kind, settings=spec.dump(), classes=classes, recipe=recipe.name, step=0),
        clips=clips,
        videos=videos,
        bad_videos=BadVideos(recipe.data.max_bad),
        report=place.report,
        memory_advice=memory_advice(plan, bytes_of, bytes_per_value=value_bytes),
        adversary=adversary,
        one_batch=place.one_batch,
    )


def _bytes_per_clip(
    spec: ModelSpec | TokenizerSpec, beside: Callable[[int], int], checkpointing: bool, bytes_per_value: int
) -> int:
    of_spec = replace(spec, checkpointing=checkpointing).bytes_per_clip(bytes_per_value)
    return of_spec + beside(bytes_per_value)


def start_run(training: Training, place: RunContext, recipe_text: str, *, init: str | None) -> None:
    """Write the first files of a new run, or go on with the one that is there. All processes must call it."""
    main = place.accelerator.is_main_process
    if main:
        claim(place.run.path)
    try:
        _start(training, place, recipe_text, init=init)
    except BaseException:
        if main:
            release(place.run.path)
        raise


def _start(training: Training, place: RunContext, recipe_text: str, *, init: str | None) -> None:
    main = place.accelerator.is_main_process
    if main and not place.resumed:
        plan = plan_facts(training.plan, training.videos)
        place.run.start(recipe_text, init=init, plan=plan, one_batch=place.one_batch)
    place.accelerator.wait_for_everyone()
    if main:
        training.tracker = make_tracker(place.tracker, place.run)
    place.report(notice(plan_line(training.plan, len(training.clips))))
    training.resume()


def plan_line(plan: StagePlan, num_videos: int) -> str:
    """What a user should see before the first step: batch and learning rate as they come out."""
    line = (
        f"{num_videos} videos, {plan.epochs} epochs of {plan.steps_per_epoch} steps; "
        f"batch {plan.batch_size} = {plan.processes} processes x {plan.accumulation} passes x "
        f"{plan.micro_batch} clips; "
        f"learning rate up to {plan.peak_lr:.2e}"
    )
    if plan.base_lr is not None:
        line += f" (base_lr {plan.base_lr:g} x batch / 256)"
    if not USUAL_LR[0] <= plan.peak_lr <= USUAL_LR[1]:
        line += f"; that is outside the usual {USUAL_LR[0]:g} to {USUAL_LR[1]:g}"
    return line


def plan_facts(plan: StagePlan, videos: dict[str, Any]) -> dict[str, Any]:
    """What env.json says of the plan."""
    derived = {"steps": plan.steps, "accumulation": plan.accumulation}
    return {**asdict(plan), **derived, **videos}


def _shard(recipe: Recipe, model: nn.Module, accelerator: Accelerator) -> None:
    if recipe.train.shard == "none" or accelerator.num_processes == 1:
        return
    if recipe.train.ema is not None:
        raise RecipeError("train.ema keeps a whole copy of the weights: not available with train.shard=full")
    shard(model, accelerator.device, accelerator.num_processes)


def _plan(
    recipe: Recipe,
    stage: Stage,
    bytes_per_clip: int,
    place: RunContext,
    videos: dict[str, Any],
) -> StagePlan:
    """The plan, with the passes of the run that is continued: other passes would sum in another order."""
    processes = place.accelerator.num_processes
    before = (place.run.read_env(PLAN) if place.resumed else None) or {}
    if any(key in before and before[key] != now for key, now in videos.items()):
        raise RecipeError(
            f"--output {place.run.path}: its run had another list of {before['videos']} videos (or other "
            f"labels), now there are {videos['videos']}; put the list back, or begin again in another folder"
        )
    if isinstance(recipe.train.micro_batch, int):
        largest = recipe.train.micro_batch
    elif before and before["processes"] == processes:
        largest = before["micro_batch"]
    else:
        largest = fitting_micro_batch(bytes_per_clip, place.accelerator.device)
    return plan_stage(stage, num_videos=videos["videos"], processes=processes, largest_micro_batch=largest)


def try_one_pass(training: Training, losses_of: LossesOf) -> dict[str, Any]:
    """Two passes with updates on real clips, nothing written; the second tells what the run will take."""
    training.model.train()
    began = time.monotonic()
    clip = on_device(next(batches(training.loader())), training.accelerator.device)
    loaded = time.monotonic()
    loss = _one_pass(training, losses_of, clip)
    warm = time.monotonic()
    _one_pass(training, losses_of, clip)
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
        "parameters": sum(p.numel() for p in training.trained_model.parameters()),
        "seconds_to_load": round(loaded - began, 2),
        "seconds_per_pass": round(seconds, 3),
        "hours": round(plan.steps * plan.accumulation * seconds / 3600, 2),
        "memory_bytes": peak_memory(training.accelerator.device),
    }


def _one_pass(training: Training, losses_of: LossesOf, clip: Clip) -> float:
    loss, adversary_loss = losses_of(clip)
    training.updater.backward(loss, adversary_loss)
    training.updater.step()
    training.updater.zero_grad()
    return loss.item()  # waits for the device


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Cut the parameters of every block, and of the rest, over all processes (FSDP, Zhao et al. 2023)."""
    mesh = init_device_mesh(device.type, (processes,))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
