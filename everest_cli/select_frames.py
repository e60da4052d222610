"""`everest select-frames`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.figures.frame_selection import FrameView


def select_frames(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Videos, or folders of videos.")],
    alpha: Annotated[float, typer.Option("--alpha", min=1.0, help="Candidate frames per drawn frame.")] = 1.5,
    keep: Annotated[float, typer.Option("--keep", help="Keep ratio over all candidate tokens.")] = 0.3,
    frames: Annotated[int, typer.Option("--frames", min=2, help="Frames of the drawn clip.")] = 16,
    stride: Annotated[
        int, typer.Option("--stride", min=1, help="Stride between candidates, where it fits.")
    ] = 4,
    size: Annotated[int, typer.Option("--size", min=16, help="Shorter side, without a checkpoint.")] = 224,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", "-c", metavar="C", help="Model whose embedding measures change [raw pixels]."
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", min=0, help="Draw N times and print how often each frame is drawn.")
    ] = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="DIR", help="Write VIDEO-frames.png there.")
    ] = None,
    extract: Annotated[
        Path | None, typer.Option("--extract", metavar="DIR", help="Write the drawn frames as PNG.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Draw information-intensive frames of videos; prints their numbers.

    Example: everest select-frames video.mp4 --picture .
    """
    from everest.checkpoints.load import open_model
    from everest.data.inputs import named_videos, refuse_same_stems
    from everest.errors import DataError, RecipeError
    from everest.figures.frame_selection import FrameDraw
    from everest.methods.strategies import RedundancyRobust

    if not 0 < keep <= 1:
        raise RecipeError(f"--keep {keep:g}: a share of the tokens is more than 0 and at most 1")
    if frames % 2:
        raise RecipeError(f"--frames {frames}: frames are drawn in pairs; give an even number")
    draw = FrameDraw(
        selector=RedundancyRobust(keep_ratio=keep),
        frames=frames,
        stride=stride,
        alpha=alpha,
        size=size,
        seed=seed,
        draws=draws,
        model=None if checkpoint is None else open_model(checkpoint, kind="transformer").transformer,
    )
    chosen = named_videos(videos)
    if picture is not None or extract is not None:
        refuse_same_stems(chosen)
    rows: list[dict[str, Any]] = []
    failed = False
    for video in chosen:
        try:
            view = draw.view(video)
        except DataError as error:
            say(f"error: {error}")
            failed = True
            continue
        row = view.to_dict() | _write(view, picture, extract, overwrite=overwrite)
        rows.append(row)
        if not as_json:
            _print(row)
    if as_json:
        print_json(rows[0] if len(videos) == 1 and len(rows) == 1 else rows)
    if failed:
        raise typer.Exit(4)


def _write(view: FrameView, picture: Path | None, extract: Path | None, *, overwrite: bool) -> dict[str, Any]:
    """Write the requested files, if none exists already; returns their paths."""
    from everest.figures.frame_selection import draw_selection, frame_files, write_frames
    from everest.system.files import check_new_file

    drawing = None if picture is None else picture / f"{view.video.stem}-frames.png"
    frames = {} if extract is None else frame_files(extract, view)
    written: dict[str, Any] = {}
    if drawing is not None:
        check_new_file(drawing, option="--picture", overwrite=overwrite)
        written["picture"] = str(drawing)
    if extract is not None:
        for path in frames:
            check_new_file(path, option="--extract", overwrite=overwrite)
        written["extracted"] = list(map(str, frames))
    if drawing is not None:
        draw_selection(drawing, view)
    write_frames(frames)
    return written


def _print(row: dict[str, Any]) -> None:
    typer.echo(f"{row['video']}: {' '.join(map(str, row['frames']))}")
    for key in ("picture", "extracted"):
        if key in row:
            written = row[key] if isinstance(row[key], str) else f"{len(row[key])} frames"
            say(f"{key}: {written}")
