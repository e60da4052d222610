"""`everest select-frames`"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say


def select_frames(
    videos: o.VideosOrFolders,
    alpha: Annotated[
        float, typer.Option("--alpha", metavar="A", min=1.0, help="Candidate frames per selected frame.")
    ] = 1.5,
    keep: Annotated[
        float, typer.Option("--keep", metavar="SHARE", help="Keep ratio over all candidate tokens.")
    ] = 0.3,
    frames: Annotated[
        int, typer.Option("--frames", metavar="N", min=2, help="Number of frames to select.")
    ] = 16,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            min=1,
            help="Take candidates N frames apart from the middle [the whole video].",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--size", metavar="N", min=16, help="Shorter side, without a checkpoint.")
    ] = 224,
    checkpoint: o.Embedding = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="DIR", help="Folder for VIDEO-frames.png.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed.")] = 0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Select the frames of a video that change most; prints their numbers.

    Example: everest select-frames video.mp4 --picture .
    """
    from everest.checkpoints.describe import trained_clip
    from everest.checkpoints.load import open_model
    from everest.errors import DataError, RecipeError
    from everest.figures.frame_selection import FrameDraw, draw_selection
    from everest.figures.masks import TUBELET
    from everest.lists.inputs import named_videos, refuse_same_stems
    from everest.methods.strategies import RedundancyRobust
    from everest.system.files import check_new_file, refuse_inputs

    if not 0 < keep <= 1:
        raise RecipeError(f"--keep {keep:g}: must be above 0 and at most 1")
    if not math.isfinite(alpha):
        raise RecipeError(f"--alpha {alpha:g}: give a number, such as 1.5")
    opened = None if checkpoint is None else open_model(checkpoint, kind="transformer")
    drawn = TUBELET[0] if opened is None else opened.transformer.encoder.patch_embed.tubelet[0]
    if frames % drawn:
        raise RecipeError(f"--frames {frames}: must be a multiple of {drawn}")
    clip = None if opened is None else trained_clip(opened)
    request = FrameDraw(
        selector=RedundancyRobust(keep_ratio=keep),
        frames=frames,
        stride=stride or 1,
        whole_video=stride is None,
        alpha=alpha,
        size=size,
        seed=seed,
        model=None if opened is None else opened.transformer,
        fps=None if clip is None else clip.fps,
    )
    paths = named_videos(videos)
    if picture is not None:
        refuse_same_stems(paths)
        image_folders = [path for path in paths if path.resolve() == picture.resolve()]
        refuse_inputs(picture, image_folders, option="--picture")
    rows: list[dict[str, Any]] = []
    failed = False
    for video in paths:
        try:
            view = request.view(video)
        except DataError as error:
            say(f"error: {error}")
            failed = True
            continue
        row = view.to_dict()
        if picture is not None:
            figure = picture / f"{video.stem}-frames.png"
            check_new_file(figure, option="--picture", overwrite=overwrite)
            draw_selection(figure, view)
            row["picture"] = str(figure)
        rows.append(row)
        if not as_json:
            typer.echo(f"{row['video']}: {' '.join(map(str, row['frames']))}")
    if as_json:
        print_json(rows[0] if len(paths) == len(rows) == 1 else rows)
    if failed:
        raise typer.Exit(4)
