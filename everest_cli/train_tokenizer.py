"""`everest train-tokenizer`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everest_cli import options as o
from everest_cli import training_command
from everest_cli.output import say

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.system.launch import Devices
    from everest.train.setup import RunContext
    from everest.train.training import Training


def train_tokenizer(
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
    """LVMAE's first stage: codes for tokens, and which of them matter; prints the run folder.

    Example: everest train-tokenizer --recipe lvmae-demo --data VIDEOS --output runs/tokenizer
    """
    settings = o.read_recipe(recipe, data=data, overrides=overrides, precision=precision, seed=seed)
    if print_config:
        training_command.print_recipe(settings)
        return
    choices = training_command.TrainOptions(
        command="train-tokenizer",
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
    ended = run_stage(settings, choices, devices, dry_run=dry_run)
    if ended is not None:
        training_command.finish(*ended)


def run_stage(
    recipe: Recipe, choices: training_command.TrainOptions, devices: Devices, *, dry_run: bool = False
) -> tuple[Training, RunContext] | None:
    """Train a recipe's tokenizer, or go on, and tell what it is worth; None after a trial.

    Raises:
        UserError: everest.errors tells which.
    """
    from everest.train_tokenizer import set_up_tokenizer, train_tokenizer, trial_losses

    with choices.place(recipe, devices) as place:
        stage = set_up_tokenizer(recipe, place)
        if dry_run:
            training_command.print_trial(stage.training, lambda clip: trial_losses(stage, clip))
            return None
        with training_command.start_or_resume(stage.training, place, recipe, init=None):
            told = train_tokenizer(stage)
    if told and not choices.quiet:
        for line in report_lines(told):
            say(line)
    return stage.training, place


def report_lines(told: dict[str, Any]) -> list[str]:
    """The report as a table, with its warnings."""
    psnr, change, overlap, codebook = (told[key] for key in ("psnr", "change", "overlap", "codebook"))
    where = "held-out" if told["held_out"] else "training"
    ratios = [f"{change[name]['ratio']:.2f}" for name in ("scorer", "untrained", "frame_difference")]
    ranks = [f"{change[name]['rank_correlation']:.2f}" for name in ("scorer", "untrained")]
    rows = [
        ("PSNR from the kept tokens", f"{psnr['own']:.2f} dB"),
        ("  from as many random ones", f"{psnr['random']:.2f} dB"),
        ("  from all", f"{psnr['all']:.2f} dB"),
        (
            "change in the top 10 %, times the mean",
            f"{ratios[0]} (untrained {ratios[1]}, change {ratios[2]})",
        ),
        ("rank correlation with change", f"{ranks[0]} (untrained {ranks[1]})"),
        (
            "overlap of different clips' choices",
            f"{overlap['scorer']:.2f} ({overlap['frame_difference']:.2f})",
        ),
        (
            "largest share in a slice",
            f"{max(told['slice_shares']):.2f} (even {1 / len(told['slice_shares']):.2f})",
        ),
        ("entropy of the scores", f"{told['score_entropy']:.3f}"),
        ("perplexity of kept codes", f"{codebook['perplexity']:.0f} of {codebook['tokens']} tokens"),
    ]
    title = f"{told['clips']} {where} clips, {told['kept']} of {told['ranked']} ranked tokens kept"
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return [title, *lines, *(f"warning: {text}" for text in told["warnings"])]
