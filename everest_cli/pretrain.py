"""`everest pretrain`"""

from __future__ import annotations

import typer

from everest_cli import options as o
from everest_cli.output import Display


def pretrain(
    recipe: o.RecipeName,
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
    """Train an encoder on videos without labels; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101
    """
    settings = o.read_recipe(recipe, data=data, overrides=overrides, precision=precision, seed=seed)
    if print_config:
        o.print_recipe(settings)
        return
    run, resumed = o.choose_output("pretrain", settings, output, resume=resume, overwrite=overwrite)

    from everest.pretrain import pretrain, pretraining_loss, set_up_pretraining

    with Display(quiet=quiet) as display:
        training = set_up_pretraining(settings, run, cpu=gpus is o.Device.cpu, report=display.report)
        if dry_run:
            o.print_trial(training, lambda clip: pretraining_loss(training.model, clip))
            return
        o.start(run, settings, resumed=resumed)
        pretrain(training)
    typer.echo(run.path)
