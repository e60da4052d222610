"""`everest finetune`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everest_cli.training_command import InitName, TrainOptions, finish, print_trial, training_command

if TYPE_CHECKING:
    from everest.config.settings import Recipe


@training_command("finetune", init=InitName)
def finetune(recipe: Recipe, options: TrainOptions, init: str) -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    options = options.with_init(init)
    devices = options.launch()

    from everest.finetuning import finetune, set_up_finetuning
    from everest.train.start import start_or_resume

    with options.context(recipe, options.of_run(devices)) as context:
        stage = set_up_finetuning(recipe, context)
        if options.dry_run:
            print_trial(stage.training, lambda clip: [stage.loss(clip)])
            return
        with start_or_resume(stage.training, recipe):
            finetune(stage)
    finish(stage.training)
