"""`everest predict` and `everest extract`: a checkpoint on any videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import Display, print_json

Videos = Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Videos, or folders of videos.")]
Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", "-c", metavar="C", help="Run folder, .safetensors file or hf:OWNER/NAME."),
]
Keep = Annotated[
    float | None,
    typer.Option("--keep", metavar="SHARE", help="Share of the tokens that is encoded [as trained]."),
]
Clips = Annotated[int | None, typer.Option("--clips", min=1, help="Clips of a video [as in the run's test].")]
Crops = Annotated[int | None, typer.Option("--crops", min=1, help="Crops of a clip [as in the run's test].")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read videos.")]
WhichWeights = Annotated[o.Which, typer.Option("--which", help="Of a run folder: newest or best weights.")]


def predict(
    videos: Videos,
    checkpoint: Checkpoint,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many classes.")] = 5,
    keep: Keep = None,
    clips: Clips = None,
    crops: Crops = None,
    which: WhichWeights = o.Which.newest,
    workers: Workers = 2,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Tell the most likely classes of videos.

    Example: everest predict holiday.mp4 --checkpoint runs/finetune
    """
    from everest.inference import Model, named_videos, predict
    from everest.load import find_weights

    named = named_videos(videos)
    model = Model.open(find_weights(checkpoint, which=which.value), clips=clips, crops=crops)
    with Display(quiet=quiet) as display:
        told = predict(model, named, top=top, keep=keep, workers=workers, report=display.report)
    print_json(told) if as_json else _print_table(told)
    if any("error" in row for row in told):
        raise typer.Exit(4)


def extract(
    videos: Videos,
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="F.safetensors", help="File to write.")],
    keep: Keep = None,
    clips: Clips = None,
    crops: Crops = None,
    which: WhichWeights = o.Which.newest,
    workers: Workers = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the features of videos, a row for each of their views; prints the file.

    Example: everest extract VIDEOS --checkpoint runs/pretrain --out features.safetensors
    """
    from everest.errors import RecipeError
    from everest.files import check_writable
    from everest.inference import Model, extract, named_videos
    from everest.load import find_weights

    if out.exists() and not overwrite:
        raise RecipeError(f"--out {out}: exists; choose another name, or use --overwrite")
    named = named_videos(videos)
    model = Model.open(find_weights(checkpoint, which=which.value), clips=clips, crops=crops)
    check_writable(out)
    with Display(quiet=quiet) as display:
        skipped = extract(model, named, out, keep=keep, workers=workers, report=display.report)
    typer.echo(out)
    if skipped:
        raise typer.Exit(4)


def _print_table(told: list[dict[str, Any]]) -> None:
    for row in told:
        typer.echo(row["video"])
        for head, likely in row.get("heads", {"": row.get("predictions", [])}).items():
            for found in likely:
                named = f"{head} {found['label']}" if head else found["label"]
                typer.echo(f"  {found['probability']:6.1%}  {named}")
