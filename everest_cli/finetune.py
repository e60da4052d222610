"""`everest finetune`"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from everest.errors import RecipeError
from everest_cli.training_command import TrainOptions, finish, print_trial, training_command

if TYPE_CHECKING:
    from everest.config.settings import Recipe

Init = Annotated[
    str, typer.Option("--init", metavar="C", help="Run folder or .safetensors to start from, or none.")
]


@training_command("finetune", init=Init)
def finetune(recipe: Recipe, options: TrainOptions, init: str) -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    weights = None
    if init != "none":
        from everest.checkpoints.load import find_weights

        weights, output = find_weights(init), options.output
        if output is not None and weights.resolve().parent == output.resolve():
            raise RecipeError(f"--output {output}: holds the weights of --init; choose another folder")
    options = replace(options, init=weights and str(weights.resolve()))
    devices = options.launch()

    from everest.finetuning import classification_loss, finetune, set_up_finetuning
    from everest.train.run_options import start_or_resume

    with options.context(recipe, options.of_run(devices)) as context:
        training, validation = set_up_finetuning(recipe, context, init=weights)
        if options.dry_run:
            print_trial(training, lambda clip: [classification_loss(training, clip, recipe.finetune)])
            return
        with start_or_resume(training, recipe, init=options.init):
            finetune(training, recipe.finetune, validation)
    finish(training)
