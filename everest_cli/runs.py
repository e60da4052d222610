"""`everest runs`: needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest.system.run_folder import WEIGHTS
from everest_cli import options as o
from everest_cli.output import print_json, print_rich, print_table, say

if TYPE_CHECKING:
    from everest.engine.listing import Ancestor, RunSummary

UNITS = (("d", 86400), ("h", 3600), ("min", 60))  # of ages, in seconds


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, at any depth.")] = Path(
        "runs"
    ),
    tree: Annotated[
        bool, typer.Option("--tree", help="Under the weights that each run started from.")
    ] = False,
    as_json: o.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the paths.")] = False,
) -> None:
    """List run folders with their recipe, progress and state.

    Example: everest runs
    """
    from dataclasses import asdict

    from everest.engine.listing import find_runs, summarize

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
    elif tree:
        _print_tree(summaries)
    elif summaries:
        _print_table(summaries)


def _print_tree(summaries: list[RunSummary]) -> None:
    """Print every run under the weights that it started from, and so on up to the first."""
    from rich.text import Text
    from rich.tree import Tree

    listed = {str(Path(run.path).resolve()): run for run in summaries}
    root = Tree("")
    nodes: dict[str, Tree] = {}  # by run folder, or by the file of weights of no listed run

    def node(file: str, label: str, ancestors: Sequence[Ancestor], below: frozenset[str]) -> Tree:
        key = _key(file, listed)
        if key in listed:  # its own files are newer than the files of runs that started from it
            label, ancestors = _in_a_line(listed[key]), listed[key].origins
        if key not in nodes:
            parent, below = root, below | {key}
            if ancestors and _key(ancestors[0].file, listed) not in below:  # not a circle
                parent = node(ancestors[0].file, _weights_line(ancestors[0]), ancestors[1:], below)
            nodes[key] = parent.add(Text(label))
        return nodes[key]

    for path, run in listed.items():
        node(str(Path(path) / WEIGHTS), "", run.origins, frozenset())
    for tree in root.children:
        print_rich(tree)


def _key(file: str, listed: Mapping[str, RunSummary]) -> str:
    """The run folder that the weights `file` is in, if it is listed, else the file."""
    run = str(Path(file).parent)
    return run if run in listed else file


def _in_a_line(run: RunSummary) -> str:
    step = "" if run.step is None else f", step {run.step}/{'?' if run.steps is None else run.steps}"
    validated = _best(run)
    accuracy = f", val {validated}" if validated else ""
    return f"{run.path}: {run.command or '?'} {run.recipe or '?'}, {run.state}{step}{accuracy}"


def _best(run: RunSummary) -> str:
    """The best validation: its metric and the value; empty if there is none."""
    from everest.evaluation.metric_text import as_text
    from everest.metrics.names import METRICS

    if run.best_metric is None or run.best_value is None:
        return ""
    metric = METRICS[run.best_metric]
    return f"{metric.short or metric.title} {as_text(metric, run.best_value)}"


def _weights_line(weights: Ancestor) -> str:
    made_by = "" if weights.recipe is None else f": {weights.recipe}"
    return f"{weights.file}{made_by}{'' if weights.step is None else f', step {weights.step}'}"


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
