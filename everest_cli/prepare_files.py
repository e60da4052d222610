"""`everest prepare encode`, `shard` and `tokens`: files that training reads faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

import typer

from everest.errors import DataError, RecipeError
from everest.system.processes import num_cores
from everest_cli import options as o
from everest_cli.options import argument, is_on_cpu, option, read_recipe
from everest_cli.output import Display, print_result, say

MOST_BYTES: Final = 10**9  # of the videos of a shard
ROOT = option("--data DIR", "Folder that paths are relative to [the list's, or FOLDER].")


def encode(
    sources: list[str] = argument("LIST|FOLDER…", "Lists or folders of videos, or their URLs."),
    output: Path = option("--output -o DIR", "Folder for the files.", ...),
    data: str | None = ROOT,
    short_side: int = option(
        "--short-side PIXELS", "Maximum; smaller videos keep their size.", 256, min=16
    ),  # our choice, for crops of 224
    codec: Literal["h264", "mjpeg"] = option(
        "--codec", "mjpeg: files of 8 times the size that are read 2.6 times as fast.", "h264"
    ),
    gop: int | None = option("--gop N", "Frames from keyframe to keyframe of h264 [12].", min=1),
    crf: int | None = option("--crf N", "Quality of h264 [18]; 0 is lossless.", min=0, max=51),
    quality: int | None = option("--quality N", "Quality of mjpeg [90]; 95 is best.", min=1, max=95),
    timeout: float = option("--timeout SECONDS", "Maximum time per video.", 3600, min=1),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Re-encode videos for faster training; prints the new lists and folder.

    Worth it for large frames and distant keyframes; small files can grow. Use --codec mjpeg if training
    waits for videos: see "Is my GPU waiting?" in the documentation.

    Example: everest prepare encode train.csv test.csv --output small
    """
    from everest.lists.inputs import read_sources
    from everest.prepare.encode import EncodeSettings, encode_videos
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
            list(read_sources(sources, data)),
            output,
            EncodeSettings(short_side=short_side, codec=encoder),
            workers=num_cores(),
            timeout=timeout,
            overwrite=overwrite,
            report=display.report,
        )
    print_result(document, "\n".join(document["lists"] or [str(output)]), as_json=as_json)
    if not quiet:
        size = document["bytes"]
        say(
            f"{document['videos']} videos, {document['encoded']} encoded now, "
            f"{len(document['failed'])} failed; "
            f"{size['before'] / 1e6:.1f} MB became {size['after'] / 1e6:.1f} MB"
        )
    if document["failed"]:
        raise typer.Exit(DataError.exit_code)


def shard(
    source: str = argument("LIST", "A list or folder of videos, or its URL."),
    output: Path = option("--output -o DIR", "Folder for the shards.", ...),
    data: str | None = ROOT,
    count: int = option("--count N", "Largest number of videos in a shard.", 10000, min=1),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Write the videos of a list to WebDataset tar files; prints the index for data.train.

    Example: everest prepare shard train.csv --output shards
    """
    from everest.lists.inputs import read_sources
    from everest.lists.reading import refuse_split_folders
    from everest.prepare.shard import write_shards

    (videos,) = read_sources([source], data)
    if not videos.is_list:
        refuse_split_folders(videos.location)
    with Display(quiet=quiet) as display:
        document = write_shards(
            videos, output, max_bytes=MOST_BYTES, max_count=count, overwrite=overwrite, report=display.report
        )
    if not quiet:
        say(f"{document['videos']} videos, shards: {document['shards']}, {document['bytes'] / 1e6:.1f} MB")
    print_result(document, document["index"], as_json=as_json)


def tokens(
    recipe: str = o.RECIPE,
    output: Path = option("--output -o DIR", "Folder for the tokens.", ...),
    variants: int = option(
        "--variants N", "Clips per video; later epochs repeat them.", 4, min=1, max=10_000
    ),
    data: str | None = o.DATA_ROOT,
    overrides: list[str] | None = o.OVERRIDES,
    batch: int = option("--batch N", "Videos in one forward pass.", 8, min=1),
    gpus: str = o.ONE_GPU,
    overwrite: bool = o.OVERWRITE,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Cache a tokenizer's or teacher's output; prints the value for pretrain.target.cache.

    A repeated call resumes a stopped one, or adds more variants.

    Example: everest prepare tokens --recipe lvmae-128 --set tokenizer.checkpoint=RUN --output tokens
    """
    from everest.checkpoints.frozen import open_teacher
    from everest.stages import with_absolute_paths
    from everest.tokenizer.cache_writing import write_tokens

    changes = [*(overrides or []), f"pretrain.target.cache={json.dumps(str(output))}"]  # also checks the path
    settings = with_absolute_paths(read_recipe(recipe, data=data, overrides=changes))
    with Display(quiet=quiet) as display:
        document = write_tokens(
            settings,
            output,
            teacher=None if settings.pretrain.teacher is None else open_teacher(settings),
            variants=variants,
            batch=batch,
            cpu=is_on_cpu(gpus),
            overwrite=overwrite,
            report=display.report,
        )
    if not quiet:
        clips, skipped = document["videos"] * document["variants"], len(document["bad"])
        say(f"{clips} clips, {document['bytes'] / 1e6:.1f} MB; {skipped} videos skipped")
    print_result(document, output, as_json=as_json)
