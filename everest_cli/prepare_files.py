"""`everest prepare encode` and `everest prepare shard`: files that training reads faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.output import Display, print_json, say

MOST_BYTES: Final = 10**9  # of the videos of a shard
Root = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder that paths are relative to [the list's, or FOLDER]."),
]


def encode(
    sources: Annotated[
        list[str], typer.Argument(metavar="LIST|FOLDER…", help="Lists or folders of videos, or their URLs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the files.")],
    data: Root = None,
    short_side: Annotated[
        int, typer.Option("--short-side", min=16, help="Maximum pixels; smaller videos keep their size.")
    ] = 256,  # our choice, for crops of 224
    codec: Annotated[
        Literal["h264", "mjpeg"],
        typer.Option("--codec", help="mjpeg: files of 10 times the size that are read 3 times as fast."),
    ] = "h264",
    gop: Annotated[
        int | None, typer.Option("--gop", min=1, help="Frames from keyframe to keyframe of h264 [12].")
    ] = None,
    crf: Annotated[
        int | None, typer.Option("--crf", min=0, max=51, help="Quality of h264 [18]; 0 is lossless.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option("--quality", min=1, max=95, help="Quality of mjpeg [90]; 95 is best.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Maximum seconds per video.")] = 3600,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Re-encode videos for faster training; prints the new lists and folder.

    Worth it for large frames and distant keyframes; small files can grow. Use --codec mjpeg if training
    waits for videos: see "Is my GPU waiting?" in the documentation.

    Example: everest prepare encode train.csv test.csv --output small
    """
    from everest.lists.inputs import read_originals
    from everest.prepare.encode import EncodeSettings, encode_videos
    from everest.system.machine import num_cores
    from everest.video.writer import H264, Mjpeg

    of_other = {"h264": {"--quality": quality}, "mjpeg": {"--gop": gop, "--crf": crf}}[codec]
    for name, value in of_other.items():
        if value is not None:
            raise RecipeError(f"{name}: has no effect with --codec {codec}; leave it out")
    # The defaults of both codecs have about the same PSNR: on ten real clips 39.9 and 39.2 dB, of luma 41.4
    # and 41.7.
    encoder = {
        "h264": H264(gop=gop or 12, crf=18 if crf is None else crf),
        "mjpeg": Mjpeg(quality=quality or 90),
    }[codec]
    with Display(quiet=quiet) as display:
        document = encode_videos(
            list(read_originals(sources, data)),
            output,
            EncodeSettings(short_side=short_side, codec=encoder),
            workers=num_cores(),
            timeout=timeout,
            overwrite=overwrite,
            report=display.report,
        )
    print_json(document) if as_json else typer.echo("\n".join(document["lists"] or [str(output)]))
    if not quiet:
        size = document["bytes"]
        say(
            f"{document['videos']} videos, {document['encoded']} encoded now, "
            f"{len(document['failed'])} failed; "
            f"{size['before'] / 1e6:.1f} MB became {size['after'] / 1e6:.1f} MB"
        )
    if document["failed"]:
        raise typer.Exit(4)


def shard(
    source: Annotated[str, typer.Argument(metavar="LIST", help="A list or folder of videos, or its URL.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the shards.")],
    data: Root = None,
    count: Annotated[
        int, typer.Option("--count", metavar="N", min=1, help="Largest number of videos in a shard.")
    ] = 10000,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the videos of a list to WebDataset tar files; prints the index for data.train.

    Example: everest prepare shard train.csv --output shards
    """
    from everest.lists.inputs import read_originals
    from everest.lists.reading import refuse_split_folders
    from everest.prepare.shard import write_shards

    (videos,) = read_originals([source], data)
    if not videos.is_list:
        refuse_split_folders(videos.location)
    with Display(quiet=quiet) as display:
        document = write_shards(
            videos,
            output,
            max_bytes=MOST_BYTES,
            max_count=count,
            overwrite=overwrite,
            report=display.report,
        )
    if not quiet:
        say(f"{document['videos']} videos, shards: {document['shards']}, {document['bytes'] / 1e6:.1f} MB")
    print_json(document) if as_json else typer.echo(document["index"])
