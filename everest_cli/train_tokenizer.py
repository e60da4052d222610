"""`everest train-tokenizer`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everest_cli import options as o
from everest_cli.option_groups import grouped
from everest_cli.output import say
from everest_cli.training_command import TrainOptions, finish, print_trial

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.engine.context import RunOptions
    from everest.engine.training import Training


@grouped
def train_tokenizer(recipe: o.RecipeName, options: TrainOptions) -> None:
    """Train LVMAE's tokenizer: codes and importance of tokens; prints the run folder.

    Example: everest train-tokenizer --recipe lvmae-demo --data VIDEOS --output runs/tokenizer
    """
    settings = options.read_recipe(recipe)
    training = run_stage(settings, options.launch("train-tokenizer", recipe), options=options)
    if training is not None:
        finish(training)


def run_stage(recipe: Recipe, run: RunOptions, *, options: TrainOptions) -> Training | None:
    """Train a recipe's tokenizer, or resume its training, and print its report; None after a dry run.

    Args:
        options: of the display, and of a dry run.

    Raises:
        UserError: see everest.errors.
    """
    from everest.engine.start import start_or_resume
    from everest.train_tokenizer import set_up_tokenizer, train_tokenizer, trial_losses

    with options.context(recipe, run) as context:
        stage = set_up_tokenizer(recipe, context)
        if options.dry_run:
            print_trial(stage.training, lambda clip: trial_losses(stage, clip))
            return None
        with start_or_resume(stage.training, recipe):
            report = train_tokenizer(stage)
    if report and not options.quiet:
        for line in report_lines(report):
            say(line)
    return stage.training


def report_lines(report: dict[str, Any]) -> list[str]:
    """The main figures of the report, which report.json has in full, followed by its warnings."""
    psnr, overlap, codebook = report["psnr"], report["overlap"], report["codebook"]
    where = "held-out" if report["held_out"] else "training"
    return [
        f"{report['clips']} {where} clips, {report['kept']} of {report['ranked']} ranked tokens kept",
        f"PSNR from the kept tokens {psnr['own']:.2f} dB, from as many random ones {psnr['random']:.2f} dB, "
        f"from all {psnr['all']:.2f} dB",
        f"overlap of different clips' choices {overlap['scorer']:.2f}",
        f"perplexity of kept codes {codebook['perplexity']:.0f} of {codebook['tokens']} tokens",
        *(f"warning: {text}" for text in report["warnings"]),
    ]
