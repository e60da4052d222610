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
    """Format the report as a table, followed by its warnings."""
    psnr, change, overlap, codebook = (report[key] for key in ("psnr", "change", "overlap", "codebook"))
    where = "held-out" if report["held_out"] else "training"
    ratios = [f"{change[name]['ratio']:.2f}" for name in ("scorer", "untrained", "frame_difference")]
    ranks = [f"{change[name]['rank_correlation']:.2f}" for name in ("scorer", "untrained")]
    rows = [
        ("PSNR from the kept tokens", f"{psnr['own']:.2f} dB"),
        ("  from as many random tokens", f"{psnr['random']:.2f} dB"),
        ("  from all tokens", f"{psnr['all']:.2f} dB"),
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
            f"{max(report['slice_shares']):.2f} (even {1 / len(report['slice_shares']):.2f})",
        ),
        ("entropy of the scores", f"{report['score_entropy']:.3f}"),
        ("perplexity of kept codes", f"{codebook['perplexity']:.0f} of {codebook['tokens']} tokens"),
    ]
    title = f"{report['clips']} {where} clips, {report['kept']} of {report['ranked']} ranked tokens kept"
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return [title, *lines, *(f"warning: {text}" for text in report["warnings"])]
