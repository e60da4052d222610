"""The training stages as functions for notebooks and programs, with the results of the commands.

The way of a run, here of pre-training; fine-tuning and the tokenizer have the same:

    engine/start.py    run_context        the processes, and a run folder that is new, resumed or refused
    pretraining.py     set_up_pretraining the model's spec, the clips, weights to start from, probes
    engine/setup.py    set_up_training    plan, model, optimizer, loader, checks: nothing is written yet
    engine/start.py    start_or_resume    lock the folder, write its first files or read the newest state
    pretraining.py     Pretraining.train  the loop; each of its calls is a method of engine/training.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from accelerate.utils.memory import clear_device_cache

from everest.checkpoints.init import find_init
from everest.checkpoints.load import find_weights
from everest.config.recipe import load_recipe, recipe_for_run
from everest.config.settings import Recipe
from everest.config.stage_settings import FeatureTargetSettings
from everest.engine.context import RunContext, RunOptions
from everest.engine.start import run_context, start_or_resume
from everest.engine.training import Training
from everest.errors import RecipeError, unknown_name
from everest.pretraining import Pretraining, set_up_pretraining
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import Report, notice, silent
from everest.system.run_folder import (
    RECIPE,
    TOKENIZER,
    Decoder,
    RunFolder,
    is_own_tokenizer,
    own_tokenizer,
)
from everest.system.signals import Stopped

# A run imports the modules of its own stage only: a tokenizer and fine-tuning take figures and metrics.
if TYPE_CHECKING:
    from everest.finetuning import Finetuning
    from everest.train_tokenizer import TokenizerStage

    Stage = Pretraining | Finetuning | TokenizerStage


def run_stage(
    recipe: Recipe,
    options: RunOptions,
    report: Report,
    *,
    trial: Callable[[Stage], None] | None = None,
) -> Training:
    """Train the stage of `options.command` in its run folder, or resume its training.

    Pre-training first trains the recipe's tokenizer, if it needs one and names none.

    Args:
        trial: called in place of the training; nothing is written.
    """
    tokenizer, cache = recipe.tokenizer, recipe.pretrain.cache
    set_up: Callable[[Recipe, RunContext], Stage] = set_up_pretraining
    if options.command == "finetune":
        from everest.finetuning import set_up_finetuning

        set_up = set_up_finetuning
    elif options.command == "train-tokenizer":
        from everest.train_tokenizer import set_up_tokenizer

        set_up = set_up_tokenizer
    elif tokenizer is None or not recipe.pretrain.needs_tokenizer:
        recipe = with_absolute_paths(recipe)
    elif tokenizer.checkpoint is None and cache is None and trial is None:
        recipe, options = _train_tokenizer(recipe, options, report)
    else:
        folder, named = options.resumed_folder or options.output, tokenizer.checkpoint
        is_missing = named is None or (is_own_tokenizer(named) and not Path(named).exists())
        if folder is not None and is_missing and own_tokenizer(folder).is_file():
            recipe = _with_checkpoint(recipe, own_tokenizer(folder))
        if named is not None or cache is not None:
            recipe = with_absolute_paths(recipe)
    with run_context(options, recipe, report) as context:
        stage = set_up(recipe, context)
        if trial is not None:
            trial(stage)
            return stage.training
        with start_or_resume(stage.training, recipe):
            stage.train()
    stage.training.accelerator.wait_for_everyone()
    return stage.training


def _train_tokenizer(recipe: Recipe, options: RunOptions, report: Report) -> tuple[Recipe, RunOptions]:
    """Train the tokenizer in the run folder; returns the recipe and the options with its path."""
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=options.cpu)
    output = decide_on_main(accelerator, lambda: options.folder(recipe.name))
    if options.resumed_folder is None:
        options = replace(options, output=output)
    own = output / TOKENIZER
    users = decide_on_main(accelerator, lambda: _users(output)) if options.overwrite else []
    if users:
        text = f"{own} is kept, because {users[0]} uses it; for another tokenizer, choose another --output"
        report(notice(text))
    stage_options = replace(
        options,
        command="train-tokenizer",
        output=own,
        resume="auto",
        init=None,
        overwrite=options.overwrite and not users,
    )
    with_path = _with_checkpoint(recipe, own_tokenizer(output))
    run = RunFolder(own)
    is_finished = decide_on_main(accelerator, lambda: run.weights.is_file() and run.report.is_file())
    if options.overwrite or not is_finished:
        # Hours of training come before pre-training: its problems are found now, with an untrained tokenizer.
        with run_context(options, with_path, silent) as context:
            set_up_pretraining(recipe, context)
        del context  # it holds the model
        clear_device_cache(garbage_collection=True)  # micro-batches are planned by the free memory
    if options.overwrite and accelerator.is_main_process:
        RunFolder(output).clear()  # now: after a stop, a call without --overwrite would resume it
    report(notice(f"the recipe names no tokenizer: {own} is trained first, or its training is resumed"))
    try:
        run_stage(recipe, stage_options, report)
    except Stopped as stopped:
        raise Stopped(
            stopped.number,
            f"stopped in the tokenizer's stage; the same command with --output {output} resumes it",
        ) from stopped
    return with_path, options


def _users(output: Path) -> list[Path]:
    """The runs next to `output` whose recipes name its tokenizer."""
    own, users = str(own_tokenizer(output).resolve()), []
    for file in sorted(output.resolve().parent.glob(f"*/{RECIPE}")):
        with suppress(RecipeError):  # a damaged recipe: its run cannot be resumed
            tokenizer = load_recipe(file, imports=False).tokenizer
            if file.parent != output.resolve() and tokenizer is not None and tokenizer.checkpoint == own:
                users.append(file.parent)
    return users


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe's tokenizer or teacher (files or run folders) and token cache absolute."""
    section = recipe.pretrain
    if recipe.tokenizer is not None and recipe.tokenizer.checkpoint is not None:
        recipe = _with_checkpoint(recipe, find_weights(recipe.tokenizer.checkpoint))
    if section.objective == "views":
        return recipe
    target = section.target
    if isinstance(target, FeatureTargetSettings):
        from everest.checkpoints.frozen import absolute_teacher

        target = replace(target, teacher=absolute_teacher(target.teacher))
    if target.cache is not None:
        target = replace(target, cache=str(Path(target.cache).resolve()))
    return replace(recipe, pretrain=replace(section, target=target))


def _with_checkpoint(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with the tokenizer in this file."""
    assert recipe.tokenizer is not None
    return replace(recipe, tokenizer=replace(recipe.tokenizer, checkpoint=str(path.resolve())))


class StageOptions(TypedDict, total=False):
    """The options of `pretrain` and `finetune`, as those of the commands."""

    data: str | Path | None  # the folder of lists and videos (`data.root`); None: the recipe's
    overrides: Sequence[str]  # `section.key=value` texts, which win over the recipe
    output: str | Path | None  # the run folder; None: `runs/COMMAND/RECIPE-TIME`
    resume: bool  # resume the run in `output`, if one is there; False: refuse to. Default: True
    overwrite: bool  # replace the contents of `output`
    cpu: bool  # use the CPU even if there is a GPU
    precision: str | None  # `train.precision`; None: the recipe's
    seed: int | None  # `train.seed`; None: the recipe's
    tracker: str  # none, tensorboard or wandb, in addition to metrics.jsonl
    report: Report  # receives the progress and notices (everest.system.events)


def pretrain(
    recipe: str | Path,
    *,
    init: str | Path | None = None,
    decoder: Decoder | None = None,
    **options: Unpack[StageOptions],
) -> Path:
    """Train an encoder on unlabeled videos, as `everest pretrain`, in this process.

    Several processes train one run if torchrun or `accelerate launch` starts them, each calling this.

    Args:
        recipe: the name of a shipped recipe, or a YAML file.
        init: the run folder or weights to start from; None or "none": from scratch.
        decoder: keep that of `init`, or start fresh; None: keep it if it fits.
        options: see `StageOptions`.
    Returns:
        The run folder, which `everest.load_model` opens.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    if decoder not in (None, "keep", "fresh"):
        raise unknown_name("decoder", decoder, ("keep", "fresh"))
    if init in (None, "none") and decoder is not None:
        raise RecipeError("decoder: only with init, which may have a decoder")
    return run_stage(*_request("pretrain", recipe, init, options, decoder)).run.path


def finetune(recipe: str | Path, *, init: str | Path | None, **options: Unpack[StageOptions]) -> Path:
    """Train a classifier from a pre-trained encoder, as `everest finetune`, in this process.

    Args:
        init: the run folder or weights to start from; None or "none": from scratch. For the others see
            `pretrain`.
    Returns:
        The run folder, which `everest.load_model` opens.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    return run_stage(*_request("finetune", recipe, init, options)).run.path


def _request(
    command: Literal["pretrain", "finetune"],
    recipe: str | Path,
    init: str | Path | None,
    options: StageOptions,
    decoder: Decoder | None = None,
) -> tuple[Recipe, RunOptions, Report]:
    """The settings of a run, its options, and what receives its events."""
    data, output, report = options.get("data"), options.get("output"), options.get("report", silent)
    overwrite = options.get("overwrite", False)
    folder = None if output is None else Path(output)
    settings = recipe_for_run(
        recipe,
        data=None if data is None else str(data),
        overrides=options.get("overrides", ()),
        precision=options.get("precision"),
        seed=options.get("seed"),
    )
    weights = None
    if init not in (None, "none"):
        weights = find_init(init, output=folder, overwrite=overwrite, decoder=decoder)
    run = RunOptions(
        command=command,
        recipe_file=str(recipe),
        output=folder,
        resume="auto" if options.get("resume", True) else "never",
        overwrite=overwrite,
        cpu=options.get("cpu", False),
        tracker=options.get("tracker", "none"),
        init=weights,
    )
    return settings, run, report
