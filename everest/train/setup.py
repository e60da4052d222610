"""From a recipe's stage to a `Training` that is ready for its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from everest.checkpoints.init import Start
from everest.checkpoints.start import start_model
from everest.config.settings import Recipe
from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.data.dataset import VideoClips
from everest.data.loader import shared_bytes
from everest.data.randomness import Purpose, seed_at
from everest.data.ring import few_workers_notice, require_shared_memory
from everest.data.short_videos import padding_notice
from everest.data.stages import fingerprint
from everest.errors import RecipeError
from everest.models.block import Block
from everest.models.memory import count_weights, frozen_bytes, training_bytes
from everest.models.partial import Stage, choose_trained, frozen_layers, require_start
from everest.models.pass_memory import PassMemory
from everest.models.spec import ModelSpec
from everest.system.accelerator import bytes_per_value, free_memory
from everest.system.cores import BusyCores, crowded_cores, num_readers, num_trainers
from everest.system.processes import local_processes
from everest.system.storage import parse_location
from everest.system.weights import Weights
from everest.tokenizer.spec import TokenizerSpec
from everest.train.context import RunContext
from everest.train.network import Network, stage_optimizer
from everest.train.plan import StagePlan, plan_stage, plan_warnings
from everest.train.training import Training

MEMORY_SHARE = 0.8  # our choice: of the free memory of a device, for the activations of one pass
WEIGHT_BYTES = 8  # of a weight: itself, and a copy in bf16 with its gradient, or with its adapter added
TRAINED_BYTES = 12  # more of a trained one: its gradient and two moments
CPU_BYTES = 2**30  # our choice: on a CPU larger passes are no faster


def set_up_training(
    recipe: Recipe,
    stage: Stage,
    spec: ModelSpec | TokenizerSpec,
    clips: VideoClips,
    context: RunContext,
    *,
    classes: tuple[str, ...] | None = None,
    start: Start | None = None,
    other_networks: Sequence[Network] = (),
    other_bytes: Callable[[int], int] = lambda bytes_per_value: 0,
) -> Training:
    """Build the model and all else that a stage trains with.

    Args:
        classes: names for the header of `model.safetensors`; a head of `start` for others is not kept.
        start: weights that the model starts from; None: the stage starts from scratch.
        other_networks: learn in the same steps as the model.
        other_bytes: memory that a clip takes in a pass outside of the model, by the bytes of a value.
    Raises:
        RecipeError: the recipe does not fit the videos, the processes or the run that is resumed, or has
            adapters or frozen blocks and no weights to start from.
        DataError: none of the videos examined can be read.
        EnvironmentProblem: too little memory for a pass on a CPU, or shared memory for the batches of the
            workers.
    """
    accelerator, others = context.accelerator, BusyCores()
    if start is None:
        require_start(stage)
    if accelerator.is_main_process and not context.resumed:
        section = "finetune" if isinstance(stage, FinetuneSettings) else "pretrain"  # has the stride
        for text in (*clips.notices, padding_notice(clips, section)):
            if text is not None:
                context.notice(text)
    root = parse_location(recipe.data.root)
    videos = {"videos": len(clips), "samples": fingerprint(clips.samples, root, classes)}
    value_bytes = bytes_per_value(accelerator)

    def bytes_of(checkpointing: bool, bytes_per_value: int) -> int:
        own = replace(spec, checkpointing=checkpointing)
        if isinstance(own, TokenizerSpec):
            return own.bytes_per_clip(bytes_per_value) + other_bytes(bytes_per_value)
        frozen = frozen_layers(stage, own.model.backbone_size.depth)
        return training_bytes(own, bytes_per_value, frozen_layers=frozen) + other_bytes(bytes_per_value)

    clip_bytes = bytes_of(recipe.train.checkpointing, value_bytes)
    weights = count_weights(spec, stage)
    of_frozen = frozen_bytes(spec) if isinstance(spec, ModelSpec) else 0
    state_bytes = WEIGHT_BYTES * weights.total + TRAINED_BYTES * weights.trained + of_frozen
    plan = _plan(recipe, stage, context, videos, bytes_per_clip=clip_bytes, state_bytes=state_bytes)
    memory = PassMemory(
        clips=plan.micro_batch,
        unit=plan.unit,
        processes=plan.processes,
        bytes_of=bytes_of,
        bytes_per_value=value_bytes,
        checkpointing=recipe.train.checkpointing,
        compares_clips=isinstance(spec, ModelSpec) and spec.views is not None,
    )
    scarce = None
    if accelerator.device.type == "cpu":
        kept = sum(weights.state_bytes(training=True, bytes_per_value=value_bytes).values()) + of_frozen
        scarce = memory.check_on_a_cpu(state_bytes=kept, processes=local_processes())
    network = _network(recipe, stage, spec, start, context, classes=classes)
    training = Training(
        context,
        recipe,
        [network, *other_networks],
        clips,
        plan=plan,
        weights=Weights(
            kind=spec.kind,
            settings=spec.dump(),
            classes=classes,
            recipe=recipe.name,
            step=0,
            origin=None if start is None else start.origin,
            clip=_clip_header(recipe, stage),
        ),
        videos=videos,
        memory_advice=memory.advice(),
    )
    workers = training.passes.workers
    of_ring = shared_bytes(clips, training.passes.order(), workers=workers)
    require_shared_memory(of_ring * local_processes())  # before anything is written
    if recipe.train.workers == "auto" and workers < num_readers() and accelerator.is_main_process:
        context.notice(few_workers_notice(workers, possible=num_readers()))
    if accelerator.is_main_process and not context.one_batch:
        warnings = [] if context.resumed else list(plan_warnings(plan, new_weights=start is None))
        shares_cores = num_trainers() != local_processes()  # as the jobs of a sweep do
        crowded = None if shares_cores else crowded_cores(*others.measure())
        for text in (*warnings, crowded, scarce):
            if text is not None:
                context.notice(f"warning: {text}")
    return training


def _network(
    recipe: Recipe,
    stage: Stage,
    spec: ModelSpec | TokenizerSpec,
    start: Start | None,
    context: RunContext,
    *,
    classes: tuple[str, ...] | None,
) -> Network:
    """The model on its device, new or with the weights of `start`, and its optimizer."""
    accelerator = context.accelerator
    torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
    model = spec.build()
    if start is not None:
        start_model(model, spec, start, classes=classes, notify=context.notice)
        rate = start.other_rate(recipe.data.fps)
        if rate is not None and not context.resumed:
            context.notice(rate)
    choose_trained(model, stage)
    model.to(accelerator.device)
    if recipe.train.shard != "none" and accelerator.num_processes > 1:
        if recipe.train.ema is not None:
            raise RecipeError(
                "train.ema keeps a full copy of the weights: not available with train.shard=full"
            )
        _shard(model, accelerator)
    return Network(
        module=model,
        optimizer=stage_optimizer(model, stage),
        ema=ModelEmaV3(model, decay=recipe.train.ema) if recipe.train.ema else None,
    )


def _clip_header(recipe: Recipe, stage: Stage) -> dict[str, Any] | None:
    """How the clips of a stage are read, for the header of its weights."""
    if not isinstance(stage, PretrainSettings | FinetuneSettings):
        return None
    clip: dict[str, Any] = {"stride": stage.stride, "sampling": stage.sampling}
    if recipe.data.fps is not None:
        clip["fps"] = recipe.data.fps
    return clip


def _shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Distribute every block and the other parameters over all processes (FSDP, Zhao et al. 2023).

    With `train.precision: bf16` the blocks gather their weights as bfloat16, half the bytes. The embedding
    stays float32: it measures importance.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    halved = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(halved, torch.float32 if halved else None, cast_forward_inputs=False)
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


def _plan(
    recipe: Recipe,
    stage: Stage,
    context: RunContext,
    videos: dict[str, Any],
    *,
    bytes_per_clip: int,
    state_bytes: int,
) -> StagePlan:
    """The plan; a resumed run keeps its micro-batch, because another one would sum in another order.

    Args:
        bytes_per_clip: of the activations.
        state_bytes: of the weights and all that is kept with them, and of a frozen tokenizer.
    """
    processes = context.accelerator.num_processes
    before = context.run.plan() if context.resumed else None
    if before and any(before[key] != value for key, value in videos.items()):
        raise RecipeError(
            f"--output {context.run.path}: its run had another list of {before['videos']} videos (or other "
            f"labels), now there are {videos['videos']}; restore the list, or start a run in another folder"
        )
    if isinstance(recipe.train.micro_batch, int):
        largest = recipe.train.micro_batch
    elif before and before["processes"] == processes:
        largest = before["micro_batch"]
    else:
        device = context.accelerator.device
        budget = int(free_memory(device) * MEMORY_SHARE) - state_bytes
        if device.type == "cpu":
            budget = min(budget, CPU_BYTES)
        # The same passes in all processes: they exchange gradients, and parts of weights, in each.
        largest = min(gather_object([max(1, budget // bytes_per_clip)]))
    return plan_stage(stage, num_videos=videos["videos"], processes=processes, largest_micro_batch=largest)
