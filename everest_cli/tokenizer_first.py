"""LVMAE's two stages in one command: the tokenizer is trained first if the recipe names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everest_cli.output import say
from everest_cli.training_command import TrainOptions

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.system.launch import Devices


def with_tokenizer(
    recipe: Recipe, options: TrainOptions, devices: Devices, *, train: bool
) -> tuple[Recipe, TrainOptions]:
    """Return the recipe with a trained tokenizer, and the options with the run folder that contains it.

    Args:
        train: whether to train a tokenizer if there is none; a dry run needs none.
    Raises:
        UserError: see everest.errors.
    """
    if recipe.tokenizer is None or not recipe.pretrain.needs_tokenizer:
        return recipe, options
    folder = options.resumed_folder or options.output
    if recipe.tokenizer.checkpoint is not None or recipe.pretrain.target.cache is not None:
        return with_absolute_paths(_with_own_tokenizer(recipe, folder)), options
    if not train:
        return _with_own_tokenizer(recipe, folder), options
    return _train_tokenizer(recipe, options, devices)


def _with_own_tokenizer(recipe: Recipe, output: Path | None) -> Recipe:
    """Add the tokenizer of the run folder to a recipe that names none, or one that no longer exists."""
    from everest.system.run_folder import is_own_tokenizer, own_tokenizer

    tokenizer = recipe.tokenizer
    if output is None or tokenizer is None:
        return recipe
    own, named = own_tokenizer(output), tokenizer.checkpoint
    missing = named is None or (is_own_tokenizer(named) and not Path(named).exists())
    if not missing or not own.is_file():
        return recipe
    return replace(recipe, tokenizer=replace(tokenizer, checkpoint=str(own.resolve())))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe's tokenizer (a file or a run folder) and token cache absolute.

    Raises:
        CheckpointError: there is no such tokenizer.
    """
    from everest.checkpoints.load import find_weights

    tokenizer, stage = recipe.tokenizer, recipe.pretrain
    if tokenizer is not None and tokenizer.checkpoint is not None:
        path = str(find_weights(tokenizer.checkpoint).resolve())
        tokenizer = replace(tokenizer, checkpoint=path)
    if stage.target.cache is not None:
        path = str(Path(stage.target.cache).resolve())
        stage = replace(stage, target=replace(stage.target, cache=path))
    return replace(recipe, tokenizer=tokenizer, pretrain=stage)


def _train_tokenizer(recipe: Recipe, options: TrainOptions, devices: Devices) -> tuple[Recipe, TrainOptions]:
    """Train the tokenizer in the run folder; returns the recipe and the options with its path."""
    from everest.system.accelerator import decide_on_main, make_accelerator
    from everest.system.run_folder import TOKENIZER, default_folder, own_tokenizer
    from everest.system.signals import Stopped
    from everest_cli.train_tokenizer import run_stage

    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=devices.kind == "cpu")
    output = decide_on_main(
        accelerator,
        lambda: options.resumed_folder or options.output or default_folder(options.command, recipe.name),
    )
    stage_options = replace(options, command="train-tokenizer", output=output / TOKENIZER, resume="auto")
    assert recipe.tokenizer is not None
    path = own_tokenizer(output).resolve()
    with_path = replace(recipe, tokenizer=replace(recipe.tokenizer, checkpoint=str(path)))
    options.may_resume(with_path, output)  # before hours of training
    say(f"the recipe names no tokenizer: {output / TOKENIZER} is trained first, or its training is resumed")
    try:
        run_stage(recipe, stage_options, devices)
    except Stopped as stopped:
        raise Stopped(
            stopped.number,
            f"stopped in the tokenizer's stage; the same command with --output {output} resumes it",
        ) from stopped
    return with_path, options if options.resumed_folder else replace(options, output=output)
