"""`everest runs`, `everest plot` and `everest doctor`; `runs` needs no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import typer

from everest.errors import EnvironmentProblem
from everest_cli import options as o
from everest_cli.options import argument, option
from everest_cli.output import print_json, print_table, say

UNITS = (("d", 86400), ("h", 3600), ("min", 60))  # of ages, in seconds


def runs(
    folder: Path = argument("FOLDER", "Folder to search, at any depth.", Path("runs")),
    as_json: bool = o.AS_JSON,
) -> None:
    """List run folders with their recipe, progress and state.

    Example: everest runs
    """
    from rich.table import Column

    from everest.engine.listing import find_runs, summarize
    from everest.evaluation.metric_text import as_text
    from everest.metrics.names import METRICS

    summaries = [summarize(run) for run in find_runs(folder)]
    if not summaries:
        say(f"{folder}: contains no run folders")
    say(*(f"damaged: {run.problem}" for run in summaries if run.problem))
    if as_json:
        print_json([asdict(run) for run in summaries])
        return
    rows = []
    for run in summaries:
        step = "-" if run.step is None else f"{run.step}/{'?' if run.steps is None else run.steps}"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        best = "-"
        if run.best_metric is not None and run.best_value is not None:
            metric = METRICS[run.best_metric]
            best = f"{metric.short or metric.title} {as_text(metric, run.best_value)}"
        unit, seconds = next(((unit, n) for unit, n in UNITS if run.age_seconds >= n), ("s", 1))
        age = f"{run.age_seconds // seconds} {unit}"
        rows.append((run.path, run.command or "-", run.recipe or "-", run.state, step, loss, best, age))
    columns = [
        Column("run", overflow="fold"),  # complete, even on two lines
        "command",
        "recipe",
        "state",
        *(Column(name, justify="right", no_wrap=True) for name in ("step", "loss", "best on val", "age")),
    ]
    if rows:
        print_table(columns, rows, box=None)


def plot(
    runs: list[Path] = argument("RUN…", "Run folders."),
    x: Literal["steps", "hours", "gflops"] = option(
        "--x", "Axis: steps, hours of training, or computation.", "steps"
    ),
    out: Path = option("--output -o F", "The PNG to write.", Path("curves.png")),
) -> None:
    """Draw losses, validations, probes and learning rates of runs; prints the figure's path.

    It replaces an earlier figure of the same name.

    Example: everest plot runs/pretrain runs/other --x gflops
    """
    from everest.figures.curves import draw_curves, read_curves
    from everest.figures.drawing import check_target, is_own_figure

    check_target(out, option="--output", overwrite=is_own_figure(out))
    draw_curves(out, read_curves(runs, x=x), x=x)
    typer.echo(out)


def doctor(as_json: bool = o.AS_JSON) -> None:
    """Check packages, devices, decoders and disk; prints problems, fixes and a verdict.

    Example: everest doctor
    """
    from everest.profiling.doctor import run_checks, verdict

    results = run_checks()
    healthy = all(result.state != "broken" for result in results)
    if as_json:
        findings = [asdict(result) for result in results]
        print_json({"healthy": healthy, "verdict": verdict(results), "findings": findings})
    else:
        widest = max(len(result.name) for result in results)
        for result in results:
            typer.echo(f"{result.state:<8} {result.name:<{widest}} {result.found}")
            if result.fix is not None:
                typer.echo(f"{'':<8} {'':<{widest}} fix: {result.fix}")
        typer.echo(verdict(results))
    if not healthy:
        raise typer.Exit(EnvironmentProblem.exit_code)
