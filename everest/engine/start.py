"""Starts or resumes a run: processes, the first files of its folder or the newest state, tracker."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec

import torch
import torch.distributed as dist
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from torch.distributed.distributed_c10d import _abort_process_group

from everest.config.recipe import dump_recipe
from everest.config.settings import Recipe
from everest.config.yaml import read_yaml
from everest.engine.context import RunContext, RunOptions, find_folder
from everest.engine.training import Training
from everest.errors import LESS_MEMORY, EnvironmentProblem, RecipeError
from everest.lists.sample import ListSize
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import Report, heading
from everest.system.files import UNFINISHED
from everest.system.launch import lost_peer
from everest.system.locks import training_lock
from everest.system.run_folder import OWN_FILES, RECIPE, RunFolder
from everest.system.signals import Stopped


@contextmanager
def run_context(options: RunOptions, recipe: Recipe, report: Report) -> Iterator[RunContext]:
    """Set up Accelerate's processes and the run folder; the run goes inside. Nothing is written yet."""
    tracker = options.tracker
    if tracker is not None and find_spec(tracker) is None:
        raise EnvironmentProblem(
            f"--tracker {tracker}: the package is not installed; run `pip install {tracker}`"
        )
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=options.cpu)
    init = None
    try:
        if options.init is not None:
            from everest.checkpoints.init import find_init  # here: it reads weights of other programs, too

            folder = options.folder(recipe.name)
            with accelerator.main_process_first():  # which downloads what the others then find
                init = find_init(
                    options.init, output=folder, overwrite=options.overwrite, decoder=options.decoder
                )
        elif options.decoder is not None:
            raise RecipeError("decoder: needs init (--init), whose decoder it keeps or replaces")
        run, resumed = decide_on_main(accelerator, lambda: find_folder(recipe, options, init))
        yield RunContext(
            accelerator=accelerator,
            run=run,
            resumed=resumed,
            report=report,
            options=options,
            init=init,
            overlaps=accelerator.device.type == "cuda",
        )
    except BaseException as error:
        lost = lost_peer(error)  # known only while the connections are open
        # A failing process closes its connections, which might otherwise abort it while it exits. NCCL ends a
        # communicator only when all its processes do, and the others may wait in a collective for this one.
        # After a signal, all processes have left the loop.
        if dist.is_initialized() and dist.get_backend() == "nccl" and not isinstance(error, Stopped):
            _abort_process_group()
        accelerator.end_training()
        if lost is not None:
            raise lost from error
        raise


@contextmanager
def start_or_resume(training: Training, recipe: Recipe) -> Iterator[None]:
    """Write the first files of a new run, or resume the run that is there; the loop goes inside.

    All processes must call it. The tracker ends with the run, even after an error: another stage may follow
    in this process. Until then no other process can train the run.
    """
    run, plan, options = training.run, training.plan, training.context.options
    main, resumed = training.accelerator.is_main_process, training.context.resumed
    with training_lock(run.path) if main else nullcontext():
        try:
            if main:  # unfinished files of killed processes
                own_files = [run.path / f".{name}{UNFINISHED}" for name in OWN_FILES]
                for file in (*own_files, *run.state.glob(f".step-*.safetensors{UNFINISHED}")):
                    file.unlink(missing_ok=True)
            if main and not resumed:
                facts = {**asdict(plan), "epochs": plan.epochs, "accumulation": plan.accumulation}
                facts |= training.videos
                values = {"stage": options.command, "plan": facts, "one_batch": options.one_batch}
                values["init"] = None
                if (init := training.context.init) is not None:
                    values |= {"init": init.file, "init_name": init.name, "decoder": init.decoder}
                    values["origin"] = training.weights.origin
                run.start(dump_recipe(recipe), values)
            training.accelerator.wait_for_everyone()
            training.report(heading(_summary(training)))
            if resumed:
                training.resume()
            if main and options.tracker is not None:
                steps_done = training.steps_done if resumed else None
                training.step_log.tracker = _start_tracker(options.tracker, run, steps_done=steps_done)
            yield
            if main:
                run.finish(training.steps_done)
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(f"out of memory; {LESS_MEMORY}") from error
        finally:
            if training.step_log.tracker is not None:
                training.step_log.tracker.finish()


def _start_tracker(name: str, run: RunFolder, *, steps_done: int | None) -> GeneralTracker:
    """Start TensorBoard or Weights & Biases beside metrics.jsonl, or continue its run over all resumes.

    Both know the resolved recipe and write below the run folder. Weights & Biases works offline unless
    WANDB_MODE is set.

    Args:
        steps_done: of a resumed run, else None; TensorBoard replaces values that were logged after them.
    """
    recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
    if name == "tensorboard":  # its run is a folder, so that it has no id
        purge_step = None if steps_done is None else steps_done + 1
        board = TensorBoardTracker(run.path.name, logging_dir=run.path / name, purge_step=purge_step)
        board.start()
        if steps_done is None:
            board.writer.add_text("recipe", f"```yaml\n{recipe_text}```", global_step=0)
        return board

    known = run.environment().tracker or {}
    run_id = known["id"] if known.get("name") == name else secrets.token_hex(8)
    os.environ.setdefault("WANDB_MODE", "offline")
    tracker = WandBTracker("everest", name=run.path.name, dir=str(run.path), id=run_id, resume="allow")
    tracker.start()
    tracker.store_init_configuration(read_yaml(recipe_text, RECIPE))
    run.note("tracker", {"name": name, "id": run_id})
    return tracker


def _summary(training: Training) -> str:
    """The first line of a run: its videos, steps, batch, learning rate, parameters and precision."""
    plan = training.plan
    text = (
        f"{ListSize.of(training.clips.samples)}, {plan.steps} steps over {plan.epochs} epochs; "
        f"batch {plan.batch_size} = {plan.processes} processes x {plan.accumulation} passes x "
        f"{plan.micro_batch} clips; learning rate up to {plan.peak_lr:.2e}"
    )
    if plan.base_lr is not None:
        text += f" (base_lr {plan.base_lr:g} x batch / 256)"
    sizes = [(p.numel(), p.requires_grad) for p in training.networks[0].module.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    if trained < total:
        text += f"; trains {trained:,} of {total:,} parameters"
    precision = training.accelerator.mixed_precision.replace("no", "fp32")
    return f"{text}; {precision}; {training.workers} workers for each process"
