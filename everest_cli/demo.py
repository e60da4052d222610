"""`everest demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from everest_cli import options as o
from everest_cli.output import Display


def demo(
    recipe: Annotated[
        Literal["demo", "lvmae-demo"],
        typer.Option("--recipe", "-r", help="EVEREST in 5 minutes, or LVMAE in 8."),
    ] = "demo",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for videos, runs and report [runs/RECIPE]."
        ),
    ] = None,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
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
