"""`everest finetune`"""

from __future__ import annotations

from everest_cli import options as o
from everest_cli.option_groups import grouped
from everest_cli.training_command import InitName, TrainOptions, finish, print_trial


@grouped
def finetune(recipe: o.RecipeName, options: TrainOptions, init: InitName = "") -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    settings = options.read_recipe(recipe, purpose="scratch" if init == "none" else "finetune")
    run = options.launch("finetune", recipe, init=init)

    from everest.engine.start import start_or_resume
    from everest.finetuning import finetune, set_up_finetuning

    with options.context(settings, run) as context:
        stage = set_up_finetuning(settings, context)
        if options.dry_run:
            print_trial(stage.training, lambda clip: [stage.loss(clip)])
            return
        with start_or_resume(stage.training, settings):
            finetune(stage)
    finish(stage.training)
