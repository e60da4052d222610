"""`everest runs`: needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest_cli import options as o
from everest_cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from everest.engine.listing import RunSummary

UNITS = (("d", 86400), ("h", 3600), ("min", 60))  # of ages, in seconds


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to search, at any depth.")] = Path(
        "runs"
    ),
    as_json: o.AsJson = False,
) -> None:
    """List run folders with their recipe, progress and state.

    Example: everest runs
    """
    from dataclasses import asdict

    from everest.engine.listing import find_runs, summarize

    summaries = [summarize(run) for run in find_runs(folder)]
    if not summaries:
        say(f"{folder}: contains no run folders")
    for run in summaries:
        if run.problem:
            say(f"damaged: {run.problem}")
    if as_json:
        print_json([asdict(run) for run in summaries])
    elif summaries:
        _print_table(summaries)


def _best(run: RunSummary) -> str:
    """The best validation: its metric and the value; empty if there is none."""
    from everest.evaluation.metric_text import as_text
    from everest.metrics.names import METRICS

    if run.best_metric is None or run.best_value is None:
        return ""
    metric = METRICS[run.best_metric]
    return f"{metric.short or metric.title} {as_text(metric, run.best_value)}"


def _print_table(summaries: list[RunSummary]) -> None:
    from rich.table import Column

    numbers = ("step", "loss", "best on val", "age")
    columns = [
        Column("run", overflow="fold"),  # complete, even on two lines
        *("command", "recipe", "state"),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
    ]
    rows = []
    for run in summaries:
        step = "-" if run.step is None else f"{run.step}/{'?' if run.steps is None else run.steps}"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        accuracy = _best(run) or "-"
        unit, seconds = next(((unit, n) for unit, n in UNITS if run.age_seconds >= n), ("s", 1))
        age = f"{run.age_seconds // seconds} {unit}"
        identity = (run.path, run.command or "-", run.recipe or "-", run.state)
        rows.append((*identity, step, loss, accuracy, age))
    print_table(columns, rows, box=None)
