"""LVMAE's two stages in one call: the tokenizer is trained first if the recipe names none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from accelerate.utils.memory import clear_device_cache

from everest.checkpoints.load import find_weights
from everest.checkpoints.teacher import absolute_teacher
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import FeatureTargetSettings
from everest.engine.context import RunContext, RunOptions
from everest.engine.start import run_context
from everest.errors import RecipeError
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import silent
from everest.system.run_folder import (
    RECIPE,
    TOKENIZER,
    RunFolder,
    is_own_tokenizer,
    own_tokenizer,
)
from everest.system.signals import Stopped

SetUp = Callable[[Recipe, RunContext], object]


def with_tokenizer(
    recipe: Recipe,
    options: RunOptions,
    *,
    train: Callable[[Recipe, RunOptions], object] | None,
    set_up: SetUp,
    notify: Callable[[str], None],
) -> tuple[Recipe, RunOptions]:
    """Return the recipe with a trained tokenizer, and the options with the run folder that contains it.

    Args:
        train: trains the tokenizer of a recipe as a run of its own. None: a dry run, which needs none.
        set_up: prepares pre-training up to its first step; called before the tokenizer is trained, so that
            problems are found early.
        notify: receives a notice before the training.
    Raises:
        UserError: see everest.errors.
    """
    if recipe.tokenizer is None or not recipe.pretrain.needs_tokenizer:
        return with_absolute_paths(recipe), options
    folder = options.resumed_folder or options.output
    if recipe.tokenizer.checkpoint is not None or recipe.pretrain.cache is not None:
        return with_absolute_paths(_with_own_tokenizer(recipe, folder)), options
    if train is None:
        return _with_own_tokenizer(recipe, folder), options
    return _train_tokenizer(recipe, options, train, set_up, notify)


def _with_own_tokenizer(recipe: Recipe, output: Path | None) -> Recipe:
    """Add the tokenizer of the run folder to a recipe that names none, or one that no longer exists."""
    tokenizer = recipe.tokenizer
    if output is None or tokenizer is None:
        return recipe
    own, named = own_tokenizer(output), tokenizer.checkpoint
    missing = named is None or (is_own_tokenizer(named) and not Path(named).exists())
    if not missing or not own.is_file():
        return recipe
    return replace(recipe, tokenizer=replace(tokenizer, checkpoint=str(own.resolve())))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe's tokenizer or teacher (files or run folders) and token cache absolute.

    Raises:
        CheckpointError: there is no such tokenizer or teacher.
    """
    tokenizer, stage = recipe.tokenizer, recipe.pretrain
    if tokenizer is not None and tokenizer.checkpoint is not None:
        path = str(find_weights(tokenizer.checkpoint).resolve())
        tokenizer = replace(tokenizer, checkpoint=path)
    if stage.objective == "pixels":
        target = stage.target
        if isinstance(target, FeatureTargetSettings):
            target = replace(target, teacher=absolute_teacher(target.teacher))
        if target.cache is not None:
            target = replace(target, cache=str(Path(target.cache).resolve()))
        stage = replace(stage, target=target)
    return replace(recipe, tokenizer=tokenizer, pretrain=stage)


def _train_tokenizer(
    recipe: Recipe,
    options: RunOptions,
    train: Callable[[Recipe, RunOptions], object],
    set_up: SetUp,
    notify: Callable[[str], None],
) -> tuple[Recipe, RunOptions]:
    """Train the tokenizer in the run folder; returns the recipe and the options with its path."""
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=options.cpu)
    output = decide_on_main(accelerator, lambda: options.folder(recipe.name))
    if options.resumed_folder is None:
        options = replace(options, output=output)
    own = output / TOKENIZER
    stage_options = replace(options, command="train-tokenizer", output=own, resume="auto", init=None)
    users = decide_on_main(accelerator, lambda: _users(output)) if options.overwrite else []
    if users:
        stage_options = replace(stage_options, overwrite=False)
        notify(f"{own} is kept, because {users[0]} uses it")
    assert recipe.tokenizer is not None
    path = own_tokenizer(output).resolve()
    with_path = replace(recipe, tokenizer=replace(recipe.tokenizer, checkpoint=str(path)))
    run = RunFolder(own)
    is_finished = decide_on_main(accelerator, lambda: run.weights.is_file() and run.report.is_file())
    if options.overwrite or not is_finished:
        _check_pretraining(recipe, with_path, options, set_up)  # before hours of training
        clear_device_cache(garbage_collection=True)  # micro-batches are planned by the free memory
    if options.overwrite and accelerator.is_main_process:
        RunFolder(output).clear()  # now: after a stop, a call without --overwrite would resume it
    notify(f"the recipe names no tokenizer: {own} is trained first, or its training is resumed")
    try:
        train(recipe, stage_options)
    except RecipeError as error:
        if users:
            raise RecipeError(
                f"{own}: used by {users[0]}, so it is not replaced; choose another --output"
            ) from error
        raise
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
        if file.parent == output.resolve():
            continue
        with suppress(RecipeError):  # a damaged recipe: its run cannot be resumed
            tokenizer = load_recipe(file, imports=False).tokenizer
            if tokenizer is not None and tokenizer.checkpoint == own:
                users.append(file.parent)
    return users


def _check_pretraining(recipe: Recipe, with_path: Recipe, options: RunOptions, set_up: SetUp) -> None:
    """Prepare pre-training with an untrained tokenizer, to find problems. Nothing is written or kept.

    The accelerator holds the model until this function returns.

    Args:
        with_path: the recipe with the path of the tokenizer that will be trained, as the run will have it.
    """
    with run_context(options, with_path, silent) as context:
        set_up(recipe, context)
