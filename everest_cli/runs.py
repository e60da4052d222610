"""`everest runs`: needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.train.listing import RunSummary

PIPE_WIDTH = 1000  # without a terminal, a run stays on one line
UNITS = (("d", 86400), ("h", 3600), ("min", 60))  # of ages, in seconds


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, at any depth.")] = Path(
        "runs"
    ),
    as_json: o.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the paths.")] = False,
) -> None:
    """List run folders with their recipe, progress and state.

    Example: everest runs
    """
    from dataclasses import asdict

    from everest.train.listing import find_runs, summarize

    summaries = [summarize(run) for run in find_runs(folder)]
    if not summaries:
        say(f"{folder}: no run folder in it")
    for run in summaries:
        if run.problem:
            say(f"damaged: {run.problem}")
    if as_json:
        print_json([asdict(run) for run in summaries])
    elif quiet:
        typer.echo("".join(f"{run.path}\n" for run in summaries), nl=False)
    elif summaries:
        _print_table(summaries)


def _print_table(summaries: list[RunSummary]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    table.add_column("run", overflow="fold")  # complete, even on two lines
    for name in ("command", "recipe", "state"):
        table.add_column(name)
    for name in ("step", "loss", "val top-1", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in summaries:
        step = "-" if run.step is None else f"{run.step}/{'?' if run.steps is None else run.steps}"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        accuracy = "-" if run.best_val_top1 is None else f"{run.best_val_top1:.2f}"
        unit, seconds = next(((unit, n) for unit, n in UNITS if run.age_seconds >= n), ("s", 1))
        age = f"{run.age_seconds // seconds} {unit}"
        identity = (run.path, run.command or "-", run.recipe or "-", run.state)
        # Text: a path may contain brackets, which are rich's markup.
        table.add_row(*map(Text, (*identity, step, loss, accuracy, age)))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)
