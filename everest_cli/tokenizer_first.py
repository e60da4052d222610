"""What `pretrain` and `finetune` do alike: processes, run folder, the loop with its display.

LVMAE's two stages in one command: the tokenizer is trained first where none is given.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everest.system.launch import Devices
from everest_cli.output import say
from everest_cli.training_command import TrainOptions

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.system.launch import Devices


def with_tokenizer(
    recipe: Recipe, choices: TrainOptions, devices: Devices, *, train: bool
) -> tuple[Recipe, TrainOptions]:
    """The recipe with a trained tokenizer, and the choices with the run folder that it is trained below.

    Args:
        train: False trains none where there is none: enough for a trial.
    Raises:
        UserError: everest.errors tells which.
    """
    if recipe.tokenizer is None or not recipe.pretrain.needs_tokenizer:
        return recipe, choices
    if recipe.tokenizer.checkpoint is not None or recipe.pretrain.target.cache is not None:
        return with_files(_with_own(recipe, choices.named or choices.output)), choices
    if not train:
        return _with_own(recipe, choices.named or choices.output), choices
    return _trained(recipe, choices, devices)


def _with_own(recipe: Recipe, output: Path | None) -> Recipe:
    """The recipe with the tokenizer in its run folder, where it names none, or that of a folder now gone."""
    from everest.system.run_folder import is_own_tokenizer, own_tokenizer

    tokenizer = recipe.tokenizer
    if output is None or tokenizer is None:
        return recipe
    within, named = own_tokenizer(output), tokenizer.checkpoint
    gone = named is None or (is_own_tokenizer(named) and not Path(named).exists())
    if not gone or not within.is_file():
        return recipe
    return replace(recipe, tokenizer=replace(tokenizer, checkpoint=str(within.resolve())))


def with_files(recipe: Recipe) -> Recipe:
    """The recipe with whole paths of its tokenizer, for which a run folder may stand, and of its token cache.

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


def _trained(recipe: Recipe, choices: TrainOptions, devices: Devices) -> tuple[Recipe, TrainOptions]:
    from everest.system.accelerator import decide_on_main, make_accelerator
    from everest.system.run_folder import TOKENIZER, default_folder, own_tokenizer
    from everest.system.signals import Stopped
    from everest_cli.train_tokenizer import run_stage

    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=devices.kind == "cpu")
    output = decide_on_main(
        accelerator, lambda: choices.named or choices.output or default_folder(choices.command, recipe.name)
    )
    below = replace(choices, command="train-tokenizer", output=output / TOKENIZER, resume="auto")
    assert recipe.tokenizer is not None
    path = own_tokenizer(output).resolve()
    later = replace(recipe, tokenizer=replace(recipe.tokenizer, checkpoint=str(path)))
    choices.check(later, output)  # before hours of training
    say(f"the recipe names no tokenizer: {output / TOKENIZER} is trained first, or gone on with")
    try:
        run_stage(recipe, below, devices)
    except Stopped as stopped:
        raise Stopped(
            stopped.number,
            f"stopped in the tokenizer's stage; the same command with --output {output} goes on",
        ) from stopped
    return later, choices if choices.named else replace(choices, output=output)
