"""From a recipe's stage to a `Training` that is ready for its first step: plan, model, loader, checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from everest.config.settings import Recipe, TrainedSection
from everest.config.tokenizer import TokenizerSettings
from everest.data.dataset import VideoClips
from everest.data.loader import shared_bytes
from everest.data.randomness import Purpose, seed_at
from everest.data.recipe_clips import examine_lengths, fingerprint
from everest.data.ring import require_shared_memory
from everest.engine.context import RunContext
from everest.engine.network import Network, stage_optimizer
from everest.engine.pass_memory import host_memory_warning, pass_memory
from everest.engine.plan import plan_stage, plan_warnings
from everest.engine.training import Training
from everest.errors import RecipeError
from everest.models.block import Block
from everest.models.partial import choose_trained, require_init
from everest.models.spec import ModelSpec
from everest.system.files import FIX
from everest.system.processes import local_processes, num_readers
from everest.system.run_folder import RunFolder
from everest.system.storage import parse_location
from everest.system.weights import Weights
from everest.system.weights_header import read_header
from everest.tokenizer.network import TokenizerSpec

if TYPE_CHECKING:
    from everest.checkpoints.init import InitWeights


def set_up_training(
    recipe: Recipe,
    section: TrainedSection,
    spec: ModelSpec | TokenizerSpec,
    clips: VideoClips,
    context: RunContext,
    *,
    classes: tuple[str, ...] | None = None,
    init: InitWeights | None = None,
    other_networks: Sequence[Network] = (),
    other_bytes: Callable[[int], int] = lambda bytes_per_value: 0,
) -> Training:
    """Build the model and all else that a stage trains with.

    Args:
        classes: names for the header of `model.safetensors`; a head of `init` for others is not kept.
        init: weights that the model starts from; None: the stage starts from scratch.
        other_networks: learn in the same steps as the model.
        other_bytes: memory that a clip takes in a pass outside of the model, by the bytes of a value.
    """
    if init is None:
        require_init(section)
    if not context.resumed:
        context.notices((*clips.notices, examine_lengths(clips)))
    samples = fingerprint(clips.samples, parse_location(recipe.data.root), classes)
    videos = {"videos": len(clips), "samples": samples}
    if context.resumed:
        _require_same_videos(context.run, videos)
    accelerator = context.accelerator
    memory = pass_memory(spec, section, accelerator, other_bytes)
    largest = _chosen_micro_batch(recipe, context)
    if largest is None:
        # The same passes in all processes: they exchange gradients, and parts of weights, in each.
        largest = min(gather_object([memory.fitting_clips(accelerator.device)]))
    plan = plan_stage(
        section, num_videos=len(clips), processes=accelerator.num_processes, largest_micro_batch=largest
    )
    on_cpu = accelerator.device.type == "cpu"
    needed = memory.needed(plan.micro_batch)
    scarce = host_memory_warning(needed, processes=local_processes()) if on_cpu else None
    model = _network(recipe, section, spec, init, context, classes)
    training = Training(
        context,
        recipe,
        [model, *other_networks],
        clips,
        plan=plan,
        weights=_header(recipe, section, spec, init, classes),
        videos=videos,
    )
    shared = shared_bytes(training.loaded_clips, training.order(), workers=training.workers)
    require_shared_memory(shared * local_processes())  # before anything is written
    if recipe.train.workers == "auto" and training.workers < num_readers():
        few = f"{training.workers} of {num_readers()} workers, because little shared memory is free"
        fix = "start the container with --shm-size=8g or --ipc=host for all of them"
        context.notices([f"train.workers: auto starts {few}; {fix}"])
    if not context.options.one_batch:
        advice = () if context.resumed else plan_warnings(plan, new_weights=init is None)
        context.notices(text and f"warning: {text}" for text in (*advice, scarce))
    return training


def require_same_frozen(run: RunFolder, spec: ModelSpec) -> None:
    """Raise RecipeError if a run's weights were trained with another teacher or tokenizer than it has now."""
    if not run.weights.is_file():
        return
    settings = read_header(run.weights).settings
    teacher, tokenizer = spec.teacher, spec.tokenizer
    for kind, name, current in (
        ("teacher", teacher and teacher.name, teacher and teacher.sha256),
        ("tokenizer", tokenizer and tokenizer.path, tokenizer and tokenizer.sha256),
    ):
        saved = (settings.get(kind) or {}).get("sha256")
        if None not in (saved, current) and saved != current:
            raise RecipeError(
                f"--output {run.path}: its run used another {kind} than the current {name}; restore it, or "
                f"{FIX}"
            )


def _require_same_videos(run: RunFolder, videos: dict[str, Any]) -> None:
    """Raise RecipeError if a run was started with another list of videos or other labels than it has now."""
    plan = run.plan()
    if plan and any(getattr(plan, key) != value for key, value in videos.items()):
        raise RecipeError(
            f"--output {run.path}: its run had another list of {plan.videos} videos (or other "
            f"labels), now there are {videos['videos']}; restore the list, or start a run in another folder"
        )


def _chosen_micro_batch(recipe: Recipe, context: RunContext) -> int | None:
    """The clips of a pass by the recipe or by the resumed run: others would sum in another order."""
    if isinstance(recipe.train.micro_batch, int):
        return recipe.train.micro_batch
    plan = context.run.plan() if context.resumed else None
    if plan is None or plan.processes != context.accelerator.num_processes:
        return None
    return plan.micro_batch


def _network(
    recipe: Recipe,
    section: TrainedSection,
    spec: ModelSpec | TokenizerSpec,
    init: InitWeights | None,
    context: RunContext,
    classes: tuple[str, ...] | None,
) -> Network:
    """The model on its device, new or with the weights of `init`, and its optimizer."""
    accelerator = context.accelerator
    torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
    model = spec.build()
    if init is not None:
        from everest.checkpoints.init import load_init  # here: it reads weights of other programs, too

        load_init(model, spec, init, classes=classes, notify=context.notice)
        if not context.resumed:
            context.notices([init.other_rate(recipe.data.fps)])
    choose_trained(model, section)
    model.to(accelerator.device)
    if recipe.train.shard != "none" and accelerator.num_processes > 1:
        if recipe.train.ema is not None:
            raise RecipeError(
                "train.ema keeps a full copy of the weights: not available with train.shard=full"
            )
        _shard(model, accelerator)
    ema = None
    if recipe.train.ema:
        from timm.utils.model_ema import ModelEmaV3  # here: timm takes a second to import

        ema = ModelEmaV3(model, decay=recipe.train.ema)
    return Network(module=model, optimizer=stage_optimizer(model, section), ema=ema)


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


def _header(
    recipe: Recipe,
    section: TrainedSection,
    spec: ModelSpec | TokenizerSpec,
    init: InitWeights | None,
    classes: tuple[str, ...] | None,
) -> Weights:
    """The header of the run's weights; its `clip` states how the stage reads clips."""
    clip: dict[str, Any] | None = None
    if not isinstance(section, TokenizerSettings):
        rate = {} if recipe.data.fps is None else {"fps": recipe.data.fps}
        clip = {"stride": section.stride, "sampling": section.sampling, **rate}
    return Weights(
        kind=spec.kind,
        settings=spec.dump(),
        classes=classes,
        recipe=recipe.name,
        step=0,
        origin=init and init.origin,
        clip=clip,
    )
