"""`everest prepare encode` and `everest prepare shard`: the files that training reads fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.output import Display, print_json, say

Root = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", help="What paths are relative to [the list's folder, or the folder itself]."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote.")]


def shard(
    source: Annotated[str, typer.Argument(metavar="LIST", help="A list of videos, or a folder; or its URL.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the shards go.")],
    data: Root = None,
    size: Annotated[int, typer.Option("--size", metavar="MB", min=1, help="Of a shard, at most.")] = 1000,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Videos of a shard.")] = 10000,
    overwrite: Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Put the videos of a list into tar files for WebDataset; prints the index, which data.train takes.

    Example: everest prepare shard train.csv --output shards
    """
    from everest.prepare.shard import write_shards
    from everest.prepare.sources import read_sources

    (read,) = read_sources([source], data)
    with Display(quiet=quiet) as display:
        told = write_shards(
            read,
            output,
            max_bytes=size * 10**6,
            max_count=count,
            overwrite=overwrite,
            report=display.report,
        )
    if not quiet:
        say(f"{told['videos']} videos in {told['shards']} shards, {told['bytes'] / 1e6:.1f} MB")
    print_json(told) if as_json else typer.echo(told["index"])
