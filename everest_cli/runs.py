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

    found = [summarize(run) for run in find_runs(folder)]
    if not found:
        say(f"{folder}: no run folder in it")
    for run in found:
        if run.problem:
            say(f"damaged: {run.problem}")
    if as_json:
        print_json([asdict(run) for run in found])
    elif quiet:
        typer.echo("".join(f"{run.path}\n" for run in found), nl=False)
    elif found:
        _print_table(found)


def _print_table(found: list[RunSummary]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    table.add_column("run", overflow="fold")  # complete, even on two lines
    for name in ("command", "recipe", "state"):
        table.add_column(name)
    for name in ("step", "loss", "val top-1", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in found:
        # Text: a path may hold [what rich takes for markup].
        table.add_row(*(Text(cell) for cell in _cells(run)))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def _cells(run: RunSummary) -> list[str]:
    """The cells of a run's row; a dash for unknown values."""
    step = "-" if run.step is None else f"{run.step}/{'?' if run.steps is None else run.steps}"
    return [
        run.path,
        run.command or "-",
        run.recipe or "-",
        run.state,
        step,
        "-" if run.loss is None else f"{run.loss:.4f}",
        "-" if run.best_val_top1 is None else f"{run.best_val_top1:.2f}",
        _age(run.age_seconds),
    ]


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
