"""`everest train` and `everest demo`: all steps in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from everest_cli import options as o
from everest_cli.options import Task, argument, local_path, option
from everest_cli.output import Display, print_json


def train(
    videos: Path = argument(
        "VIDEOS",
        "A list; or a folder of class folders, lists (train.csv, …) or recordings (--annotations).",
        parser=local_path,
    ),
    annotations: Path | None = option("--annotations F", "Bouts in recordings: BORIS, ELAN, CSV and others."),
    unlabeled: Path | None = option("--unlabeled DIR", "Videos to pre-train on first: a folder or a list."),
    output: Path | None = option("--output -o DIR", "Folder of all results [runs/train/NAME]."),
    group: str | None = option(
        "--group G",
        "Never split a group of videos over lists; see `everest prepare split` "
        "[a list's column `group`, else each recording or video].",
    ),
    folds: int | None = option("--folds N", "Test on each of N parts in turn; then train on all.", min=3),
    hours: float | None = option("--hours H", "Approximate hours of training.", min=0.01, max=10_000),
    task: Task | None = o.TASK,
    overrides: list[str] | None = o.OVERRIDES,
    overwrite: bool = option("--overwrite", "Replace the project in --output; your own files stay.", False),
    dry_run: bool = option("--dry-run", "Print the plan with its minutes; write nothing.", False),
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
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


def demo(
    recipe: Literal["demo", "lvmae-demo"] = option(
        "--recipe -r", "EVEREST in 5 minutes, or LVMAE in 8.", "demo"
    ),
    output: Path | None = option("--output -o DIR", "Folder for videos, runs and report [runs/RECIPE]."),
    overwrite: bool = o.OVERWRITE,
    quiet: bool = o.QUIET,
) -> None:
    """Pre-train, fine-tune and evaluate on rendered videos, in minutes; prints the report.

    Example: everest demo --output runs/demo
    """
    from everest_demo.demo import run_demo
    from everest_demo.lvmae import run_lvmae_demo
    from everest_demo.steps import REPORT, demo_folder

    folder = output or Path("runs") / recipe
    run = run_lvmae_demo if recipe == "lvmae-demo" else run_demo
    with demo_folder(folder, overwrite=overwrite), Display(quiet=quiet) as display:
        run(folder, report=display.report)
    typer.echo((folder / REPORT).read_text("utf-8"), nl=False)
    typer.echo(folder / REPORT)
