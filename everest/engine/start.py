"""Opens the folder of a run, and starts, resumes or refuses the run.

Traces of killed processes count as no run: a run that has not started, and unfinished files.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _abort_process_group

from everest.config.recipe import RESUME_MAY_CHANGE, dump_recipe, flat_values, load_recipe, recipe_values
from everest.config.settings import Recipe
from everest.config.yaml import read_yaml
from everest.data.clips import Batch
from everest.data.loader import on_device
from everest.engine.context import RunContext, RunOptions
from everest.engine.training import Training
from everest.errors import LESS_MEMORY, EnvironmentProblem, RecipeError, differing, first_names
from everest.lists.sample import ListSize
from everest.system.accelerator import decide_on_main, make_accelerator, peak_memory
from everest.system.events import Report, heading
from everest.system.files import IN_USE_FIX, UNFINISHED, is_unfinished
from everest.system.launch import lost_peer
from everest.system.locks import refuse_trained, training_lock
from everest.system.run_folder import (
    ENVIRONMENT,
    OWN_FILES,
    RECIPE,
    STATE,
    TOKENIZER,
    Init,
    RunFolder,
    is_own_tokenizer,
    own_tokenizer,
)
from everest.system.signals import Stopped
from everest.tokenizer.clips import tokenizer_depends_on

if TYPE_CHECKING:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    Tracker = TensorBoardTracker | WandBTracker


@contextmanager
def run_context(options: RunOptions, recipe: Recipe, report: Report) -> Iterator[RunContext]:
    """Set up Accelerate's processes and the run folder; the run goes inside. Nothing is written yet."""
    tracker = options.tracker
    if tracker != "none" and find_spec(tracker) is None:
        raise EnvironmentProblem(
            f"--tracker {tracker}: the package is not installed; run `pip install {tracker}`"
        )
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=options.cpu)
    init = None
    try:
        if options.init not in (None, "none"):
            from everest.checkpoints.init import find_init  # here: it reads weights of other programs, too

            folder = options.folder(recipe.name)
            with accelerator.main_process_first():  # which downloads what the others then find
                init = find_init(
                    options.init, output=folder, overwrite=options.overwrite, decoder=options.decoder
                )
        elif options.decoder is not None:
            raise RecipeError("decoder: needs init (--init), whose decoder it keeps or replaces")
        run, resumed = decide_on_main(accelerator, lambda: _find_folder(recipe, options, init))
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
                    values["origin"] = training.origin
                run.start(dump_recipe(recipe), values)
            training.accelerator.wait_for_everyone()
            training.report(heading(_summary(training)))
            if resumed:
                training.resume()
            if main and options.tracker != "none":
                steps_done = training.steps_done if resumed else None
                training.tracker = _start_tracker(options.tracker, run, steps_done=steps_done)
            yield
            if main:
                run.finish(training.steps_done)
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(f"out of memory; {LESS_MEMORY}") from error
        finally:
            if training.tracker is not None:
                training.tracker.finish()


def _start_tracker(name: str, run: RunFolder, *, steps_done: int | None) -> Tracker:
    """Start TensorBoard or Weights & Biases beside metrics.jsonl, or continue its run over all resumes.

    Both know the resolved recipe and write below the run folder. Weights & Biases works offline unless
    WANDB_MODE is set.

    Args:
        steps_done: of a resumed run, else None; TensorBoard replaces values that were logged after them.
    """
    recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
    if name == "tensorboard":  # its run is a folder, so that it has no id
        from accelerate.tracking import TensorBoardTracker

        purge_step = None if steps_done is None else steps_done + 1
        board = TensorBoardTracker(run.path.name, logging_dir=run.path / name, purge_step=purge_step)
        board.start()
        if steps_done is None:
            board.writer.add_text("recipe", f"```yaml\n{recipe_text}```", global_step=0)
        return board

    from accelerate.tracking import WandBTracker

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


def _find_folder(recipe: Recipe, options: RunOptions, init: Init | None) -> tuple[RunFolder, bool]:
    """The folder of a run, and whether the run that is there is resumed. Nothing is written or removed."""
    path = options.folder(recipe.name)
    run, place = RunFolder(path), f"--output {path}"
    names: set[str] = set()  # of what only a run that has started writes, or another program
    if path.exists():
        if not path.is_dir():
            raise RecipeError(f"{place}: a file is in the way; choose another folder")
        refuse_trained(path)
        # The tokenizer's run in the folder may be at any step: it is trained first.
        names = {file.name for file in path.iterdir() if not is_unfinished(file.name)} - {TOKENIZER}
        if run.state.is_dir() and all(is_unfinished(file.name) for file in run.state.iterdir()):
            names.discard(STATE)
        if run.has_environment():
            names.discard(ENVIRONMENT)
    if not names:
        if options.resumed_folder is not None:
            raise RecipeError(f"--resume {path}: there is no run to resume")
        return run, False
    if options.overwrite:
        read = [
            options.recipe_file,
            init and init.file,
            recipe.tokenizer and recipe.tokenizer.checkpoint,
            recipe.pretrain.teacher if options.command == "pretrain" else None,
        ]
        tokenizer = own_tokenizer(path).resolve()  # its own stage decides about it
        sources = [Path(name) for name in read if name]
        lost = [
            f"{source}, which the run reads"
            for source in sources
            if source.resolve() != tokenizer and source.resolve().is_relative_to(path.resolve())
        ]
        if not run.has_environment():
            foreign = [path / name for name in OWN_FILES if (path / name).exists()]
            lost += [f"{file}, which no run has written" for file in foreign]
        if lost:
            raise RecipeError(f"{place}: --overwrite would remove {lost[0]}; choose another folder")
        return run, False
    if not (path / RECIPE).is_file():
        raise RecipeError(f"{place}: is not a run folder; choose another, or use --overwrite")
    if options.resume == "never":
        raise RecipeError(
            f"{place}: holds a run; leave out `--resume never` to resume it, or use --overwrite"
        )
    if not run.has_environment():
        raise RecipeError(
            f"{place}: {ENVIRONMENT} is missing or not of a run; restore it, or choose another folder"
        )
    differences = _differences(run, recipe, options, init)
    if differences:
        shown = first_names(differences, 3)
        raise RecipeError(
            f"{place}: holds a run with different settings: {shown}; use its values, or {IN_USE_FIX}"
        )
    return run, True


def _differences(run: RunFolder, recipe: Recipe, options: RunOptions, init: Init | None) -> list[str]:
    """The settings and options in which the run in the folder differs, each with both values."""
    saved = flat_values(recipe_values(load_recipe(run.path / RECIPE, imports=False)))
    given = flat_values(recipe_values(recipe))
    may_change = set(RESUME_MAY_CHANGE)
    if options.command == "train-tokenizer":
        may_change |= {key for key in saved.keys() | given.keys() if not tokenizer_depends_on(key, recipe)}
    # A frozen model may have been moved: its hash is compared with that in the weights when it is read.
    for key in ("tokenizer.checkpoint", "pretrain.target.teacher"):
        old, new = saved.get(key), given.get(key)
        is_own = is_own_tokenizer(str(old)) and Path(str(new)) == own_tokenizer(run.path).resolve()
        if old and new and (is_own or run.weights.is_file()):
            may_change.add(key)
    environment = run.environment()
    saved |= {"command": environment.stage, "--overfit-one-batch": environment.one_batch}
    given |= {"command": options.command, "--overfit-one-batch": options.one_batch}
    saved |= {"--init": environment.init, "--decoder": environment.decoder if init else None}
    given |= {"--init": init and init.file, "--decoder": init and init.decoder}
    return differing(*({key: of[key] for key in of if key not in may_change} for of in (saved, given)))


def try_one_pass(training: Training, losses_of: Callable[[Batch], Sequence[Tensor]]) -> dict[str, Any]:
    """The plan, the loss, and the estimated time and memory of a run, of which nothing is written.

    Two passes with updates are run on real clips, the second one is timed. `losses_of` a batch are first the
    model's loss, then one for each other network that is active.
    """
    plan = training.plan
    training.model.train()
    started = time.monotonic()
    with closing(training.loader()) as loader:
        batch = on_device(next(iter(loader)), training.accelerator.device)
    times = [time.monotonic()]
    losses = []
    for _ in range(2):
        with training.one_pass(plan.accumulation - 1):  # the last one: processes exchange gradients
            pass_losses = losses_of(batch)
            training.backward(pass_losses)
        training.update(training.clip_gradients())
        losses.append(pass_losses[0].item())  # waits for the device
        times.append(time.monotonic())
    seconds = times[2] - times[1]
    return {
        "loss": losses[0],
        "videos": len(training.clips),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "passes_per_step": plan.accumulation,
        "peak_lr": plan.peak_lr,
        "parameters": sum(p.numel() for p in training.state.trained_model.parameters()),
        "trained_parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
        "seconds_to_load": round(times[0] - started, 2),
        "seconds_per_pass": round(seconds, 3),
        "hours": round(plan.steps * plan.accumulation * seconds / 3600, 2),
        "memory_bytes": peak_memory(training.accelerator.device),
    }
