"""Prepares a stage for its first step: checks, plan, model, optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from everest.checkpoints.frozen import build_with_teacher
from everest.config.settings import Recipe, TrainedSection, TrainSettings
from everest.data.clip_dataset import ClipDataset
from everest.data.loader import shared_bytes
from everest.data.randomness import Purpose, seed_at
from everest.data.recipe_clips import apply_resize_setting, examine_lengths, fingerprint
from everest.data.workers import require_shared_memory
from everest.engine.context import RunContext
from everest.engine.network import make_network, prepare_model
from everest.engine.schedule import Schedule, StageMemory, clips_that_fit, plan_stage, plan_warnings
from everest.engine.state import TrainState
from everest.engine.step import TrainedNetwork
from everest.engine.training import Training
from everest.errors import LESS_MEMORY, EnvironmentProblem, OptionError
from everest.models.clip_spec import ModelSpec
from everest.models.memory import WEIGHT_BYTES, count_weights, frozen_bytes, training_bytes
from everest.system.files import IN_USE_FIX
from everest.system.processes import free_host_memory, num_local_processes, num_readers
from everest.system.run_folder import RunFolder
from everest.system.storage import parse_location
from everest.system.weights import Weights
from everest.system.weights_header import read_header
from everest.tokenizer.spec import TokenizerSpec

if TYPE_CHECKING:
    from everest.checkpoints.init import InitWeights

# Heuristic: times the free memory; measured peaks were 0.8 to 1.2 times the counted bytes.
SURELY_TOO_MUCH: Final = 1.25


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """The model, the clips and the settings of a stage, from which its training is made."""

    recipe: Recipe
    section: TrainedSection  # of the recipe, with the settings of the stage
    spec: ModelSpec | TokenizerSpec
    dataset: ClipDataset
    classes: tuple[str, ...] | None = None  # of the data; a head of the same classes is kept
    init_weights: InitWeights | None = None  # None: the stage starts from scratch
    other_networks: Sequence[TrainedNetwork] = ()  # that learn in the same steps as the model
    other_clip_bytes: int = 0  # that a clip takes in a micro-batch outside of the model


def make_training(inputs: StageInputs, context: RunContext) -> Training:
    """Check the videos, plan the stage, build its model and optimizer; nothing is written."""
    recipe, section, spec, dataset = inputs.recipe, inputs.section, inputs.spec, inputs.dataset
    if context.resumed:
        _check_inputs(context.run_folder, sample_facts(recipe, dataset, inputs.classes), spec)
    else:  # opens some of the videos
        context.notice(*dataset.notices, examine_lengths(dataset))
    plan, memory_warning = _plan(inputs, context)
    network = make_network(_new_model(inputs, context), section, recipe.train, context.accelerator)
    networks = [network, *inputs.other_networks]
    header = Weights(  # all that later commands need to rebuild the model and read clips
        kind=spec.kind,
        settings=spec.dump(),
        classes=inputs.classes,
        recipe=recipe.name,
        step=0,
        origin=inputs.init_weights and inputs.init_weights.origin,
        clip=section.clip_settings(recipe.data.fps),
    )
    training = Training(
        context=context,
        recipe=recipe,
        plan=plan,
        dataset=apply_resize_setting(dataset, recipe.data.resize, context.accelerator.device),
        model=prepare_model(context.accelerator, network.module, recipe.train),
        networks=networks,
        state=TrainState(context, networks, header),
    )
    _check_shared_memory(training)
    if not context.options.one_batch:
        advice = () if context.resumed else plan_warnings(plan, new_weights=inputs.init_weights is None)
        context.warn(*advice, memory_warning)
    return training


def _plan(inputs: StageInputs, context: RunContext) -> tuple[Schedule, str | None]:
    """Plan the steps and micro-batches of a stage; a warning if its memory on a CPU is scarce.

    A resumed run keeps its micro-batches: others would sum its gradients in another order.
    """
    accelerator, settings = context.accelerator, inputs.recipe.train
    memory = measure_memory(
        inputs.spec,
        inputs.section,
        settings,
        bytes_per_value=context.bytes_per_value,
        other_networks=inputs.other_networks,
        other_clip_bytes=inputs.other_clip_bytes,
    )
    run, saved_micro_batch = context.run_folder, None  # clips, if the run is resumed
    if context.resumed and (saved := run.read_environment().plan).processes == accelerator.num_processes:
        saved_micro_batch = saved.micro_batch
    largest = saved_micro_batch if settings.micro_batch == "auto" else settings.micro_batch
    plan = plan_stage(
        inputs.section,
        num_videos=len(inputs.dataset),
        processes=accelerator.num_processes,
        largest_micro_batch=_largest_micro_batch(accelerator, memory) if largest is None else largest,
    )
    if saved_micro_batch not in (None, plan.micro_batch):
        raise OptionError(
            f"output {run.path}: its micro-batches have {saved_micro_batch} clips, now {plan.micro_batch}, "
            f"which would change its numbers; set train.micro_batch={saved_micro_batch}, with "
            "train.checkpointing=true if memory is short, or begin a new run with "
            f"--init {run.path} and another --output"
        )
    if accelerator.device.type != "cpu":
        return plan, None
    return plan, check_host_memory(memory.needed(plan.micro_batch), processes=num_local_processes())


def _largest_micro_batch(accelerator: Accelerator, memory: StageMemory) -> int:
    """The most clips in a micro-batch, by the free memory; equal in all processes."""
    on_gpu = accelerator.device.type == "cuda"
    free = torch.cuda.mem_get_info(accelerator.device)[0] if on_gpu else free_host_memory()
    clips = clips_that_fit(memory, free, on_cpu=accelerator.device.type == "cpu")
    # The same micro-batches in all processes: they exchange gradients, and parts of weights, in each.
    return min(gather_object([clips]))


def _new_model(inputs: StageInputs, context: RunContext) -> nn.Module:
    """Build the model of a stage, with the weights that it starts from."""
    recipe, spec, init_weights = inputs.recipe, inputs.spec, inputs.init_weights
    torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
    if not isinstance(spec, ModelSpec):
        return spec.build()
    model = build_with_teacher(spec, recipe)
    if init_weights is not None:
        from everest.checkpoints.init import load_init  # here: it reads weights of other programs, too

        load_init(model, spec, init_weights, classes=inputs.classes, notify=context.notice)
        if not context.resumed:
            context.notice(init_weights.describe_rate_mismatch(recipe.data.fps))
    return model


def sample_facts(recipe: Recipe, dataset: ClipDataset, classes: Sequence[str] | None) -> dict[str, Any]:
    """The number and the fingerprint of the samples of a stage, as in env.json."""
    samples = fingerprint(dataset.samples, parse_location(recipe.data.root), classes)
    return {"videos": len(dataset), "samples": samples}


def _check_inputs(run: RunFolder, videos: dict[str, Any], spec: ModelSpec | TokenizerSpec) -> None:
    """Refuse to resume a run with other videos, another teacher or another tokenizer."""
    plan = run.read_environment().plan
    changed: list[str] = []
    if any(getattr(plan, key) != value for key, value in videos.items()):
        current = f"the current one of {videos['videos']}"
        changed.append(f"list of {plan.videos} videos (or other labels) than {current}")
    for kind, name in (("teacher", "name"), ("tokenizer", "path")):
        current = spec.dump().get(kind)
        if current and run.weights.is_file():
            saved = (read_header(run.weights).settings.get(kind) or {}).get("sha256")
            if None not in (saved, current["sha256"]) and saved != current["sha256"]:
                changed.append(f"{kind} than the current {current[name]}")
    if changed:
        raise OptionError(
            f"output {run.path}: its run used another {changed[0]}; restore it, or {IN_USE_FIX}"
        )


def measure_memory(
    spec: ModelSpec | TokenizerSpec,
    section: TrainedSection,
    settings: TrainSettings,
    *,
    bytes_per_value: int,
    other_networks: Sequence[TrainedNetwork] = (),
    other_clip_bytes: int = 0,
) -> StageMemory:
    """Count the memory of a stage; that of a clip is measured in a micro-batch without numbers."""
    weights = count_weights(spec, section)
    state = sum(weights.state_bytes(training=True, bytes_per_value=bytes_per_value).values())
    if settings.ema is not None:
        state += WEIGHT_BYTES * weights.total
    if isinstance(spec, ModelSpec):
        state += frozen_bytes(spec)
    for network in other_networks:  # gradients and both moments; the weights are on the device already
        state += 3 * WEIGHT_BYTES * sum(weight.numel() for weight in network.module.parameters())
    return StageMemory(
        state=state,
        copies=WEIGHT_BYTES * weights.total,
        per_clip=training_bytes(spec, bytes_per_value, section) + other_clip_bytes,
    )


def _check_shared_memory(training: Training) -> None:
    """Refuse to start workers without enough shared memory; show a notice if it allows only some of them."""
    workers = training.workers
    shared = shared_bytes(training.dataset, training.order(), workers=workers)
    require_shared_memory(shared * num_local_processes())
    if training.recipe.train.workers == "auto" and workers < num_readers():
        few = f"{workers} of {num_readers()} workers, because little shared memory is free"
        fix = "start the container with --shm-size=8g or --ipc=host for all of them"
        training.context.notice(f"train.workers: auto starts {few}; {fix}")


def check_host_memory(needed: int, *, processes: int) -> str | None:
    """Return a warning if the run may need more memory than is free; EnvironmentProblem if it surely does.

    The system would kill it without a message.

    Args:
        needed: bytes of a process.
        processes: of the run on this machine.
    """
    free, needed = free_host_memory(with_swap=True), processes * needed
    if needed <= free:
        return None
    shared = f" in {processes} processes" if processes > 1 else ""
    text = (
        f"{free / 2**30:.2f} GiB of memory is free, but the run needs about {needed / 2**30:.2f} GiB"
        f"{shared}; {LESS_MEMORY}"
    )
    if needed > SURELY_TOO_MUCH * free:
        raise EnvironmentProblem(f"too little memory: {text}")
    return f"the system may kill the run: {text}"
