"""Opens the folder of a run, and starts the run or resumes the one that is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch

from everest.config.recipe import dump_recipe
from everest.config.settings import Recipe
from everest.data.loader import shared_bytes
from everest.engine.context import RunContext, RunOptions
from everest.engine.resume import check_output, remove_leftovers
from everest.engine.tracking import check_tracker, make_tracker
from everest.engine.training import Training
from everest.errors import EnvironmentProblem, RecipeError
from everest.lists.groups import ListSize
from everest.system.accelerator import (
    decide_on_main,
    end_training_on_error,
    make_accelerator,
    precision_text,
)
from everest.system.events import Report
from everest.system.locks import claimed
from everest.system.run_environment import DECODER, INIT, INIT_NAME, ORIGIN
from everest.system.run_folder import RunFolder


@contextmanager
def run_context(options: RunOptions, recipe: Recipe, report: Report) -> Iterator[RunContext]:
    """Set up Accelerate's processes and the run folder. Nothing is written yet.

    Raises:
        RecipeError: the run may not use this folder.
        EnvironmentProblem: the package of the tracker is not installed, or there is no GPU for the precision.
    """

    def find_folder() -> tuple[RunFolder, bool]:
        path = options.folder(recipe.name)
        resumed = check_output(path, recipe, options)
        if options.resumed_folder is not None and not resumed:
            raise RecipeError(f"--resume {path}: there is no run to resume")
        return RunFolder(path), resumed

    check_tracker(options.tracker)
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=options.cpu)
    with end_training_on_error(accelerator):
        run, resumed = decide_on_main(accelerator, find_folder)
        yield RunContext(
            accelerator=accelerator,
            run=run,
            resumed=resumed,
            report=report,
            overlaps=accelerator.device.type == "cuda",
            tracker=options.tracker,
            init=options.init,
            one_batch=options.one_batch,
        )


@contextmanager
def start_or_resume(training: Training, recipe: Recipe) -> Iterator[None]:
    """Start or resume a run; the loop goes inside.

    The tracker ends with the run, even after an error: another stage may follow in this process. Until then
    no other process can train the run.

    Raises:
        CheckpointError: the run cannot be resumed.
        RecipeError: another process trains the run.
        EnvironmentProblem: a pass does not fit into the memory of a GPU.
    """
    with claimed(training.run.path) if training.accelerator.is_main_process else nullcontext():
        try:
            start_run(training, recipe)
            yield
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(f"out of memory: {training.memory_advice()}") from error
        finally:
            if training.tracker is not None:
                training.tracker.finish()


def start_run(training: Training, recipe: Recipe) -> None:
    """Write the first files of a new run, or resume the run that is there. All processes must call it."""
    context, plan, init = training.context, training.plan, training.context.init
    main = context.accelerator.is_main_process
    if main:
        remove_leftovers(context.run)
    if main and not context.resumed:
        facts = {**asdict(plan), "epochs": plan.epochs, "accumulation": plan.accumulation, **training.videos}
        start = {}
        if init is not None:
            start = {INIT: init.file, INIT_NAME: init.name, DECODER: init.decoder, ORIGIN: training.origin}
        context.run.start(dump_recipe(recipe), plan=facts, one_batch=context.one_batch, start=start)
    context.accelerator.wait_for_everyone()
    training.notice(_summary(training))
    training.resume()
    if main and context.tracker != "none":
        steps_done = training.steps_done if context.resumed else None
        training.tracker = make_tracker(context.tracker, context.run, steps_done=steps_done)


def _summary(training: Training) -> str:
    """The first line of a run: its videos, steps, batch, learning rate, parameters and precision."""
    plan, feed = training.plan, training.feed
    text = (
        f"{ListSize.of(training.clips.samples)}, {plan.steps} steps over {plan.epochs} epochs; "
        f"batch {plan.batch_size} = {plan.processes} processes x {plan.accumulation} passes x "
        f"{plan.micro_batch} clips; learning rate up to {plan.peak_lr:.2e}"
    )
    if plan.base_lr is not None:
        text += f" (base_lr {plan.base_lr:g} x batch / 256)"
    sizes = [(p.numel(), p.requires_grad) for p in training.state.networks[0].module.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    if trained < total:
        text += f"; trains {trained:,} of {total:,} parameters"
    text += f"; {precision_text(training.accelerator, training.settings.precision)}"
    if feed.workers:
        shared = shared_bytes(training.clips, feed.order(), workers=feed.workers)
        text += f"; {feed.workers} workers and {shared / 1e6:.0f} MB of shared memory for each process"
    return text
