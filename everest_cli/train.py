"""`everest train`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import Display, print_json


def train(
    videos: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="VIDEOS",
            help="Folder of class folders or lists (train.csv, …), a list, or recordings (--annotations).",
        ),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="F", help="Bouts in recordings: BORIS, ELAN, CSV and others."),
    ] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option("--unlabeled", metavar="DIR", help="Videos to pre-train on first: a folder or a list."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of all results [runs/train/NAME]."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="G",
            help="Keep groups in one list; see `everest prepare split` [column group, recordings].",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds", metavar="N", min=3, help="Test on each of N parts in turn; then train on all."
        ),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option("--hours", metavar="H", min=0.01, max=10_000, help="Approximate hours of training."),
    ] = None,
    task: o.TaskName = None,
    overrides: o.Overrides = None,
    overwrite: o.Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its minutes; write nothing.")
    ] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Train and test a model on your videos; repeat the command to resume.

    Example: everest train VIDEOS --output runs/mine
    """
    from everest.project.train import train as train_project
    from everest.project.verdict import verdict

    with Display(quiet=quiet) as display:
        result: dict[str, Any] = train_project(
            videos,
            annotations=annotations,
            unlabeled=unlabeled,
            output=output,
            group=group,
            task=task,
            folds=folds,
            hours=hours,
            overrides=overrides or (),
            overwrite=overwrite,
            dry_run=dry_run,
            report=display.report,
        )
    if as_json:
        print_json(result)
    else:
        typer.echo("\n".join(result["lines"] if dry_run else verdict(result)))
