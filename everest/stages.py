"""Runs a training stage in its run folder, with its tracker, for commands and notebooks.

docs/architecture.md follows a run from its command to the first update.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from everest.checkpoints.init import recipe_for_init
from everest.config.recipe import dump_recipe
from everest.config.run_options import RunOptions, RunStage, StageOptions
from everest.config.settings import Recipe
from everest.config.values import StageName
from everest.config.yaml import read_yaml
from everest.engine.context import RunContext, run_context
from everest.engine.folder_check import FolderRules
from everest.engine.setup import sample_facts
from everest.engine.training import Stage, Training
from everest.errors import LESS_MEMORY, EnvironmentProblem, unknown_name
from everest.lists.sample import ListSize
from everest.pretraining import PRETRAINING_FOLDER, set_up_pretraining
from everest.pretraining_tokenizer import with_frozen_networks
from everest.system.accelerator import restore_process_state
from everest.system.events import Emit, heading, ignore_event
from everest.system.locks import training_lock
from everest.system.run_folder import RECIPE_FILE, DecoderStart, RunFolder


def run_stage(
    recipe: Recipe, options: RunOptions, emit: Emit, *, dry_run: Callable[[Stage], None] | None = None
) -> RunFolder:
    """Train the stage of `options.stage` in its run folder, or resume its training; returns the folder.

    Pre-training first trains the recipe's tokenizer, if it needs one and names none.

    Args:
        dry_run: called in place of the training; nothing is written.
    """
    has_frozen = recipe.tokenizer is not None or recipe.pretrain.teacher is not None
    if options.stage == "pretrain" and has_frozen:
        train = run_stage if dry_run is None else None
        recipe, options = with_frozen_networks(recipe, options, emit, train=train)
    rules, set_up = _define_stage(options.stage, recipe)
    with run_context(options, recipe, emit, rules) as context:
        stage = set_up(recipe, context)
        if dry_run is not None:
            dry_run(stage)
            return context.run_folder
        with start_or_resume(stage.training, recipe):
            stage.train()
    context.accelerator.wait_for_everyone()
    return context.run_folder


def _define_stage(
    stage: RunStage, recipe: Recipe
) -> tuple[FolderRules, Callable[[Recipe, RunContext], Stage]]:
    """What a stage declares about its run folder, and the function that prepares it up to its first step."""
    if stage == "pretrain":
        return PRETRAINING_FOLDER, set_up_pretraining
    if stage == "finetune":
        from everest.finetuning import FINETUNING_FOLDER, set_up_finetuning  # here: it takes seconds

        return FINETUNING_FOLDER, set_up_finetuning
    from everest.tokenizer_training import set_up_tokenizer_training, tokenizer_folder

    return tokenizer_folder(recipe), set_up_tokenizer_training


@contextmanager
def start_or_resume(training: Training, recipe: Recipe) -> Iterator[None]:
    """Write the first files of a new run, or resume the run that is there; the loop goes inside.

    All processes must call it. The tracker ends with the run, even after an error: another stage may follow
    in this process. Until then no other process can train the run.
    """
    context, is_main = training.context, training.context.accelerator.is_main_process
    run, name, tracker = context.run_folder, context.options.tracker, None
    with training_lock(run.path) if is_main else nullcontext():
        try:
            if is_main:
                run.remove_unfinished()
            if is_main and not context.resumed:
                run.start(dump_recipe(recipe), _environment(training))
            context.accelerator.wait_for_everyone()
            context.emit(heading(_summary(training)))
            if context.resumed:
                training.resume()
            if is_main and name != "none":
                steps_done = training.steps_done if context.resumed else None
                tracker = training.step_log.tracker = _start_tracker(name, run, steps_done=steps_done)
            yield
            if is_main:
                run.finish(training.steps_done)
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(f"out of memory; {LESS_MEMORY}") from error
        finally:
            if tracker is not None:
                tracker.finish()


def _environment(training: Training) -> dict[str, Any]:
    """The values of a new run in env.json, except the description of the machine."""
    plan, options, header = training.plan, training.context.options, training.state.header
    facts = {**asdict(plan), "epochs": plan.epochs, "accumulation": plan.accumulation}
    facts |= sample_facts(training.recipe, training.dataset, header.classes)
    values: dict[str, Any] = {"stage": options.stage, "plan": facts, "one_batch": options.one_batch}
    if (init := training.context.init_file) is None:
        return {**values, "init": None}
    values |= {"init": init.file, "init_name": init.name, "decoder": init.decoder}
    return {**values, "origin": header.origin}


def _start_tracker(name: str, run: RunFolder, *, steps_done: int | None) -> GeneralTracker:
    """Start TensorBoard or Weights & Biases beside metrics.jsonl, or continue its run over all resumes.

    Both store the full recipe and write below the run folder. Weights & Biases works offline unless
    WANDB_MODE is set.

    Args:
        steps_done: of a resumed run, else None; TensorBoard replaces values that were logged after them.
    """
    recipe_text = (run.path / RECIPE_FILE).read_text(encoding="utf-8")
    if name == "tensorboard":  # its run is a folder, so that it has no id
        purge_step = None if steps_done is None else steps_done + 1
        board = TensorBoardTracker(run.path.name, logging_dir=run.path / name, purge_step=purge_step)
        board.start()
        if steps_done is None:
            board.writer.add_text("recipe", f"```yaml\n{recipe_text}```", global_step=0)
        return board

    known = run.read_environment().tracker or {}
    run_id = known["id"] if known.get("name") == name else secrets.token_hex(8)
    os.environ.setdefault("WANDB_MODE", "offline")
    tracker = WandBTracker("everest", name=run.path.name, dir=str(run.path), id=run_id, resume="allow")
    tracker.start()
    tracker.store_init_configuration(read_yaml(recipe_text, RECIPE_FILE))
    run.save_value("tracker", {"name": name, "id": run_id})
    return tracker


def _summary(training: Training) -> str:
    """The first line of a run: its videos, steps, batch, learning rate, parameters and precision."""
    plan = training.plan
    text = (
        f"{ListSize.of(training.dataset.samples)}, {plan.steps} steps over {plan.epochs} epochs; "
        f"batch {plan.batch_size} = {plan.processes} processes x {plan.accumulation} micro-batches x "
        f"{plan.micro_batch} clips; learning rate up to {plan.peak_lr:.2e}"
    )
    if plan.base_lr is not None:
        text += f" (base_lr {plan.base_lr:g} x batch / 256)"
    sizes = [(p.numel(), p.requires_grad) for p in training.networks[0].module.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    if trained < total:
        text += f"; trains {trained:,} of {total:,} parameters"
    precision = training.context.accelerator.mixed_precision.replace("no", "fp32")
    return f"{text}; {precision}; {training.workers} workers for each process"


def pretrain(
    recipe: str | Path,
    *,
    init: str | Path | None = None,
    decoder: DecoderStart | None = None,
    cpu: bool = False,
    emit: Emit = ignore_event,
    **options: Any,
) -> Path:
    """Train an encoder on unlabeled videos, as `everest pretrain`, in this process.

    Several processes train one run if torchrun or `accelerate launch` starts them, each calling this. What a
    run sets in the process, such as the precision of float32 products, is restored at its end.

    Args:
        recipe: the name of a shipped recipe, or a YAML file.
        init: the run folder or weights to start from; None or "none": from scratch.
        decoder: keep that of `init`, or start fresh; None: keep it if it fits.
        cpu: use the CPU even if there is a GPU.
        emit: receives the progress and notices (everest.system.events).
        options: of the command, by the names in `everest.config.run_options.StageOptions`: data, overrides,
            output, resume (True or False), overwrite, tracker and one_batch.
    Returns:
        The run folder, which `everest.load_model` opens.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    if decoder not in (None, "keep", "fresh"):
        raise unknown_name("decoder", decoder, ("keep", "fresh"))
    return _train_stage("pretrain", recipe, options, emit, init=init, decoder=decoder, cpu=cpu)


def finetune(
    recipe: str | Path,
    *,
    init: str | Path | None,
    cpu: bool = False,
    emit: Emit = ignore_event,
    **options: Any,
) -> Path:
    """Train a classifier from a pre-trained encoder, as `everest finetune`, in this process.

    Args:
        init: the run folder or weights to start from; None or "none": from scratch. For the others see
            `pretrain`.
    Returns:
        The run folder, which `everest.load_model` opens.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    return _train_stage("finetune", recipe, options, emit, init=init, cpu=cpu)


@restore_process_state()
def _train_stage(
    stage: StageName,
    recipe: str | Path,
    options: dict[str, Any],
    emit: Emit,
    **added: Any,
) -> Path:
    """Train a stage with the recipe, changed by the options; returns the run folder."""
    known = [field.name for field in fields(StageOptions)]
    for name in options.keys() - {*known}:
        raise unknown_name("option", name, known)
    run_options = RunOptions.of(StageOptions(**options), stage=stage, recipe_file=str(recipe), **added)
    return run_stage(recipe_for_init(run_options), run_options, emit).path
