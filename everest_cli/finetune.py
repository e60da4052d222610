"""`everest finetune`"""

from __future__ import annotations

from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli import training_command


def finetune(
    recipe: o.RecipeName,
    init: Annotated[
        str,
        typer.Option("--init", metavar="C", help="Run folder or .safetensors to start from, or none."),
    ],
    data: o.DataRoot = None,
    overrides: o.Overrides = None,
    output: o.Output = None,
    resume: o.ResumeMode = "auto",
    overwrite: o.Overwrite = False,
    gpus: o.Gpus = "auto",
    processes: o.Processes = None,
    precision: o.PrecisionMode = None,
    seed: o.Seed = None,
    tracker: o.TrackerName = o.TrackerChoice.none,
    overfit_one_batch: o.OverfitOneBatch = False,
    print_config: o.PrintConfig = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    settings = o.read_recipe(recipe, data=data, overrides=overrides, precision=precision, seed=seed)
    if print_config:
        training_command.print_recipe(settings)
        return
    weights = o.find_init(init, output)
    choices = training_command.TrainOptions(
        command="finetune",
        recipe=recipe,
        output=output,
        resume=resume,
        overwrite=overwrite,
        gpus=gpus,
        processes=processes,
        init=weights and str(weights.resolve()),
        tracker=tracker.value,
        one_batch=overfit_one_batch,
        quiet=quiet,
    )
    devices = choices.launch()

    from everest.finetune import classification_loss, finetune, set_up_finetuning

    with choices.place(settings, devices) as place:
        training, validation = set_up_finetuning(settings, place, init=weights)
        if dry_run:
            training_command.print_trial(
                training, lambda clip: (classification_loss(training, clip, settings.finetune), None)
            )
            return
        with training_command.start_or_resume(training, place, settings, init=choices.init):
            finetune(training, settings.finetune, validation)
    training_command.finish(training, place)
