"""`everest plot`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    x: Annotated[
        Literal["steps", "hours", "gflops"],
        typer.Option("--x", help="Axis: steps, hours of training, or computation."),
    ] = "steps",
    out: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="The PNG to write.")] = Path(
        "curves.png"
    ),
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
