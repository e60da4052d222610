"""The frozen networks of pre-training; a tokenizer that the recipe does not name is trained first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from accelerate.utils.memory import clear_device_cache

from everest.checkpoints.frozen import with_absolute_paths, with_tokenizer
from everest.config.recipe import load_recipe
from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.engine.context import run_context
from everest.errors import RecipeError
from everest.methods.targets import START
from everest.pretraining import PRETRAINING_FOLDER, set_up_pretraining
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import Emit, ignore_event, notice
from everest.system.run_folder import (
    RECIPE_FILE,
    TOKENIZER_FOLDER,
    RunFolder,
    is_tokenizer_file,
    tokenizer_file,
)
from everest.system.signals import Stopped
from everest.tokenizer.spec import tokenizer_settings

StageRunner = Callable[[Recipe, RunOptions, Emit], object]  # everest.stages.run_stage


def with_frozen_networks(
    recipe: Recipe, options: RunOptions, emit: Emit, *, train: StageRunner | None
) -> tuple[Recipe, RunOptions]:
    """The recipe with the files of its teacher and its tokenizer, which is trained now if need be.

    Args:
        train: runs the stage of the tokenizer; None: a missing tokenizer is not trained.
    Returns:
        The recipe, and the options with the run folder that has the recipe's own tokenizer.
    """
    if recipe.pretrain.teacher == START and options.init is None:
        text = "the run starts from no weights, whose features it would learn"
        raise RecipeError(f"pretrain.target.teacher=start: {text}; name some with --init")
    if recipe.pretrain.needs_tokenizer:
        named = tokenizer_settings(recipe).checkpoint
        if named is None and recipe.pretrain.cache is None and train is not None:
            return _train_tokenizer(recipe, options, emit, train)
        own_file = tokenizer_file(options.folder(recipe.name))
        is_missing = named is None or (is_tokenizer_file(named) and not Path(named).exists())
        if is_missing and own_file.is_file():
            recipe = with_tokenizer(recipe, own_file)
    return with_absolute_paths(recipe), options


def _train_tokenizer(
    recipe: Recipe, options: RunOptions, emit: Emit, train: StageRunner
) -> tuple[Recipe, RunOptions]:
    """Train the tokenizer in the run folder; see `with_frozen_networks`."""
    accelerator = make_accelerator(recipe.train.precision, cpu=options.cpu)
    output = decide_on_main(accelerator, lambda: options.folder(recipe.name))
    options = replace(options, output=output)
    run, overwrite = RunFolder(output / TOKENIZER_FOLDER), options.overwrite
    runs_using_tokenizer = decide_on_main(accelerator, lambda: _find_runs(output)) if overwrite else []
    if runs_using_tokenizer:
        text = f"{run.path} is kept, because {runs_using_tokenizer[0]} uses it"
        emit(notice(f"{text}; for another tokenizer, choose another --output"))
    with_own = with_tokenizer(recipe, tokenizer_file(output))
    is_finished = decide_on_main(accelerator, lambda: run.weights.is_file() and run.report.is_file())
    if overwrite or not is_finished:
        # Hours of training come before pre-training: its problems are found now, with an untrained tokenizer.
        with run_context(options, with_own, ignore_event, PRETRAINING_FOLDER) as context:
            set_up_pretraining(recipe, context)
        del context  # it holds the model
        clear_device_cache(garbage_collection=True)  # micro-batches are planned by the free memory
    if overwrite and accelerator.is_main_process:
        RunFolder(output).clear()  # now: after a stop, a call without --overwrite would resume it
    emit(notice(f"the recipe names no tokenizer: {run.path} is trained first, or its training is resumed"))
    start = {
        "init": None,
        "decoder": None,
        "must_exist": False,
        "resume": "auto",
        "overwrite": overwrite and not runs_using_tokenizer,
    }
    own_options = replace(options, stage="train-tokenizer", output=run.path, **start)
    try:
        train(recipe, own_options, emit)
    except Stopped as stopped:
        text = f"stopped in the tokenizer's stage; the same command with --output {output} resumes it"
        raise Stopped(stopped.signal, text) from stopped
    return with_own, options


def _find_runs(output: Path) -> list[Path]:
    """The runs next to `output` whose recipes name its tokenizer."""
    own, runs = str(tokenizer_file(output).resolve()), []
    for file in sorted(output.resolve().parent.glob(f"*/{RECIPE_FILE}")):
        with suppress(RecipeError):  # a damaged recipe: its run cannot be resumed
            tokenizer = load_recipe(file, imports=False).tokenizer
            if file.parent != output.resolve() and tokenizer is not None and tokenizer.checkpoint == own:
                runs.append(file.parent)
    return runs
