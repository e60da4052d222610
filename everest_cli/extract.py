"""`everest extract`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from everest_cli import options as o
from everest_cli.option_groups import ModelOptions, grouped
from everest_cli.option_values import read_views
from everest_cli.output import Display


@grouped
def extract(
    videos: o.Videos,
    model: ModelOptions,
    out: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="F", help="The .safetensors or .npz file to write."),
    ],
    features: Annotated[
        Literal["video", "views", "tokens"],
        typer.Option("--features", help="Features per video, per view or per token."),
    ] = "video",
    views: o.Views = None,
    window: Annotated[
        float | None,
        typer.Option(
            "--window", min=0.001, metavar="SECONDS", help="A row for each window of this length [a video]."
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option("--step", min=0.001, metavar="SECONDS", help="Time between window starts [--window]."),
    ] = None,
    overwrite: o.OverwriteFile = False,
) -> None:
    """Write features of videos or windows to a file; repeat the command to resume.

    Example: everest extract VIDEOS --checkpoint runs/pretrain --output features.safetensors
    """
    from everest.inference.features import extract
    from everest.lists.inputs import named_samples
    from everest.system.files import refuse_inputs

    opened = model.open(**read_views(views or (None if window is None else "1x1")))
    samples = named_samples(videos, root=model.data)
    refuse_inputs(out, [*videos, *model.inputs], option="--output")
    with Display(quiet=model.quiet) as display:
        skipped = extract(
            opened,
            samples,
            out,
            level=features,
            batch=model.batch,
            overwrite=overwrite,
            report=display.report,
            window=window,
            step=step,
        )
    typer.echo(out)
    if skipped:
        raise typer.Exit(4)
