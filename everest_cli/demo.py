"""`everest demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.output import Display


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for videos, runs and report.")
    ] = Path("runs/demo"),
    overwrite: o.Overwrite = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the videos and the training.")] = 0,
    quiet: o.Quiet = False,
) -> None:
    """Run the whole path in minutes on videos that it renders itself; prints the report.

    Example: everest demo --output runs/demo
    """
    from everest.demo import REPORT, clear_demo, run_demo

    clear_demo(output, overwrite=overwrite)
    with Display(quiet=quiet) as display:
        run_demo(output, seed=seed, report=display.report)
    typer.echo((output / REPORT).read_text(), nl=False)
    typer.echo(output / REPORT)
