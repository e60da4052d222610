"""`everest finetune`"""

from __future__ import annotations

from functools import partial

from everest_cli import options as o
from everest_cli.option_groups import grouped
from everest_cli.training_command import InitName, TrainOptions


@grouped
def finetune(recipe: o.RecipeName, options: TrainOptions, init: InitName = "") -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    settings = options.read_recipe(recipe, purpose="scratch" if init == "none" else "finetune")
    run = options.launch("finetune", recipe, init=init)

    from everest.finetuning import set_up_finetuning
    from everest.stages import run_stage

    options.train(partial(run_stage, set_up_finetuning), settings, run)
