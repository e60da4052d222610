"""`everest finetune`"""

from __future__ import annotations

from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.output import Display


def finetune(
    recipe: o.RecipeName,
    init: Annotated[
        str,
        typer.Option("--init", metavar="C", help="Run folder or .safetensors to start from; none: scratch."),
    ],
    data: o.DataRoot = None,
    overrides: o.Overrides = None,
    output: o.Output = None,
    resume: o.ResumeMode = o.Resume.auto,
    overwrite: o.Overwrite = False,
    gpus: o.Gpus = o.Device.auto,
    precision: o.PrecisionMode = None,
    seed: o.Seed = None,
    print_config: o.PrintConfig = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a classifier from a pre-trained encoder; prints the run folder.

    Example: everest finetune --recipe ucf101 --init runs/ucf101 --data /data/ucf101
    """
    settings = o.read_recipe(recipe, data=data, overrides=overrides, precision=precision, seed=seed)
    if print_config:
        o.print_recipe(settings)
        return
    run, resumed = o.choose_output("finetune", settings, output, resume=resume, overwrite=overwrite)

    from everest.finetune import classification_loss, finetune, set_up_finetuning
    from everest.load import find_weights

    with Display(quiet=quiet) as display:
        training, validation = set_up_finetuning(
            settings,
            run,
            init=None if init == "none" else find_weights(init),
            cpu=gpus is o.Device.cpu,
            report=display.report,
        )
        if dry_run:
            o.print_trial(training, lambda clip: classification_loss(training, clip, settings.finetune))
            return
        o.start(run, settings, resumed=resumed)
        finetune(training, settings.finetune, validation)
    typer.echo(run.path)
