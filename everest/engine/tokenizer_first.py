"""LVMAE's two stages in one call: the tokenizer is trained first if the recipe names none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from accelerate.utils.memory import clear_device_cache

from everest.checkpoints.load import find_weights
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import FeatureTargetSettings
from everest.engine.context import RunContext, RunOptions
from everest.engine.start import run_context
from everest.errors import RecipeError
from everest.system.accelerator import decide_on_main, make_accelerator
from everest.system.events import silent
from everest.system.hub import PREFIXES
from everest.system.run_folder import RECIPE, TOKENIZER, RunFolder, is_own_tokenizer, own_tokenizer
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
    """
    tokenizer = recipe.tokenizer
    if tokenizer is None or not recipe.pretrain.needs_tokenizer:
        return with_absolute_paths(recipe), options
    is_given = tokenizer.checkpoint is not None or recipe.pretrain.cache is not None
    if train is not None and not is_given:
        return _train_tokenizer(recipe, options, train, set_up, notify)
    folder = options.resumed_folder or options.output
    named = tokenizer.checkpoint
    missing = named is None or (is_own_tokenizer(named) and not Path(named).exists())
    if folder is not None and missing and own_tokenizer(folder).is_file():
        recipe = _with_checkpoint(recipe, own_tokenizer(folder))
    return with_absolute_paths(recipe) if is_given else recipe, options


def _with_checkpoint(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with the tokenizer in this file."""
    assert recipe.tokenizer is not None
    return replace(recipe, tokenizer=replace(recipe.tokenizer, checkpoint=str(path.resolve())))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe's tokenizer or teacher (files or run folders) and token cache absolute."""
    section = recipe.pretrain
    if recipe.tokenizer is not None and recipe.tokenizer.checkpoint is not None:
        recipe = _with_checkpoint(recipe, find_weights(recipe.tokenizer.checkpoint))
    if section.objective == "views":
        return recipe
    target = section.target
    if isinstance(target, FeatureTargetSettings) and not target.teacher.startswith(PREFIXES):
        target = replace(target, teacher=str(find_weights(target.teacher).resolve()))
    if target.cache is not None:
        target = replace(target, cache=str(Path(target.cache).resolve()))
    return replace(recipe, pretrain=replace(section, target=target))


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
    users = decide_on_main(accelerator, lambda: _users(output)) if options.overwrite else []
    if users:
        notify(f"{own} is kept, because {users[0]} uses it; for another tokenizer, choose another --output")
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
            set_up(recipe, context)
        del context  # it holds the model
        clear_device_cache(garbage_collection=True)  # micro-batches are planned by the free memory
    if options.overwrite and accelerator.is_main_process:
        RunFolder(output).clear()  # now: after a stop, a call without --overwrite would resume it
    notify(f"the recipe names no tokenizer: {own} is trained first, or its training is resumed")
    try:
        train(recipe, stage_options)
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
