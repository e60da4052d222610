"""`everest extract`"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.option_values import read_recipe
from everest_cli.output import Display, say


class Level(StrEnum):
    """The level of the features; see everest.inference.features.LEVELS."""

    video = "video"
    views = "views"
    tokens = "tokens"


def extract(
    videos: o.Videos,
    checkpoint: o.Checkpoint,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="A .safetensors or .npz file.")],
    features: Annotated[
        Level, typer.Option("--features", help="One per video, per view or per token.")
    ] = Level.video,
    recipe: o.HowSeen = None,
    keep: o.Keep = None,
    clips: o.Clips = None,
    crops: o.Crops = None,
    batch: o.Batch = 1,
    data: o.ListRoot = None,
    which: o.WhichWeights = None,
    workers: o.Workers = 2,
    precision: o.PrecisionMode = None,
    cpu: o.OnCpu = False,
    overwrite: o.OverwriteFile = False,
    quiet: o.Quiet = False,
) -> None:
    """Write features of videos to a file and print its name; a killed call resumes when repeated.

    Example: everest extract VIDEOS --checkpoint runs/pretrain --output features.safetensors
    """
    from everest.checkpoints.load import find_weights
    from everest.inference.features import extract
    from everest.inference.model import OpenedModel
    from everest.lists.inputs import named_samples
    from everest.system.files import refuse_inputs

    model = OpenedModel.open(
        find_weights(checkpoint, which=which.value if which else None, quiet=quiet),
        recipe=read_recipe(recipe) if recipe else None,
        clips=clips,
        crops=crops,
        keep=keep,
        precision=precision,
        cpu=cpu,
        notify=say,
    )
    samples = named_samples(videos, root=data)
    refuse_inputs(out, [*videos, recipe and Path(recipe)], option="--output")
    with Display(quiet=quiet) as display:
        skipped = extract(
            model,
            samples,
            out,
            level=features.value,
            batch=batch,
            workers=workers,
            overwrite=overwrite,
            report=display.report,
        )
    typer.echo(out)
    if skipped:
        raise typer.Exit(4)
