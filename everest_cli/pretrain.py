"""`everest pretrain`"""

from __future__ import annotations

from everest_cli import options as o
from everest_cli import training_command
from everest_cli.tokenizer_first import with_tokenizer


def pretrain(
    recipe: o.RecipeName,
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
    """Train an encoder on videos without labels; prints the run folder.

    Example: everest pretrain --recipe ucf101 --data /data/ucf101 --output runs/ucf101
    """
    settings = o.read_recipe(recipe, data=data, overrides=overrides, precision=precision, seed=seed)
    if print_config:
        training_command.print_recipe(settings)
        return
    choices = training_command.TrainOptions(
        command="pretrain",
        recipe=recipe,
        output=output,
        resume=resume,
        overwrite=overwrite,
        gpus=gpus,
        processes=processes,
        tracker=tracker.value,
        one_batch=overfit_one_batch,
        quiet=quiet,
    )
    devices = choices.launch()
    settings, choices = with_tokenizer(settings, choices, devices, train=not dry_run)

    from everest.pretrain import pretrain, pretraining_loss, set_up_pretraining

    with choices.place(settings, devices) as place:
        training = set_up_pretraining(settings, place)
        if dry_run:
            training_command.print_trial(
                training, lambda clip: (pretraining_loss(training.model, clip), None)
            )
            return
        with training_command.start_or_resume(training, place, settings, init=None):
            pretrain(training)
    training_command.finish(training, place)
