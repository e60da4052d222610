"""`everest visualize-mask`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everest.errors import DataError
from everest_cli import options as o
from everest_cli.option_values import read_recipe, read_shares
from everest_cli.output import print_json, say


def visualize_mask(
    videos: o.VideosOrFolders,
    checkpoint: o.Embedding = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="R", help="Use the clips and tokens of a recipe."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy", metavar="NAME", help="Token selection [redundancy-robust, or C's or R's]."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="SHARE,…", help="Keep ratios to draw [0.3, or C's or R's]."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare the common strategies.")] = False,
    align: o.Align = None,
    cuts: o.Cuts = None,
    slice_cap: Annotated[
        float | None,
        typer.Option(
            "--slice-cap", metavar="SHARE", help="Largest share of the kept tokens in one slice [1]."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", min=2, help="Frames of a clip [16, or C's or R's].")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", metavar="N", min=1, help="Distance between frames [4, or C's or R's]."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="N",
            min=16,
            help="Shorter side in pixels [224, or R's]; a model has its own.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the figures.")
    ] = Path(),
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of random selections.")] = 0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Draw kept, visible and predicted tokens of videos; prints the paths of the figures.

    Example: everest visualize-mask video.mp4 --keep 0.5,0.25,0.15
    """
    from everest.checkpoints.load import open_model
    from everest.figures.mask_request import request_masks
    from everest.lists.inputs import named_videos, refuse_same_stems

    settings = {"slice_cap": slice_cap, "align": align, "cuts": cuts}
    clip = {"frames": frames, "stride": stride, "size": size}
    request = request_masks(
        None if checkpoint is None else open_model(checkpoint),
        None if recipe is None else read_recipe(recipe),
        strategy=strategy if strategy is None or ":" in strategy else strategy.replace("_", "-"),
        ratios=() if keep is None else read_shares(keep),
        compare=compare,
        settings={name: value for name, value in settings.items() if value is not None},
        clip={name: value for name, value in clip.items() if value is not None},
        seed=seed,
    )
    paths = named_videos(videos)
    refuse_same_stems(paths)
    documents: list[dict[str, Any]] = []
    failed = False
    for video in paths:
        try:
            rows = request.draw(video, out, read=paths, overwrite=overwrite)
        except DataError as error:
            say(f"error: {error}")
            failed = True
            continue
        documents += rows
        if not as_json:
            typer.echo(rows[0]["written"][0])
    if as_json:
        print_json(documents)
    if failed:
        raise typer.Exit(4)
