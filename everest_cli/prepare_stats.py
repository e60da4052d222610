"""`everest prepare stats`: measures colors, lengths, class balance and motion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everest.system.machine import num_cores
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import Display, print_json, say

DIGITS = 4  # our choice, of a mean and std: a fortieth of a level of a byte


def stats(
    source: Annotated[
        Path, typer.Argument(parser=local_path, metavar="SOURCE", help="A list, or a folder of videos.")
    ],
    most: Annotated[
        int | None,
        typer.Option("--videos", metavar="N", min=1, help="Use N random videos of each class [all]."),
    ] = None,
    data: o.Root = None,
    task: o.TaskName = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Print mean and std of the colors, lengths, class balance and camera motion.

    Motion is the mean absolute difference of neighboring gray frames, from 0 (still) to 1.

    Example: everest prepare stats train.csv
    """
    from everest.lists.reading import read_labeled
    from everest.prepare.stats import take_stats

    root = data or (source if source.is_dir() else source.parent)
    listed = read_labeled(source, root=root, task=task)
    if listed.notice is not None:
        say(listed.notice)
    with Display(quiet=quiet) as display:
        document = take_stats(listed, most=most, workers=num_cores(), report=display.report)
    print_json(document) if as_json else _print_stats(document)


def _print_stats(document: dict[str, Any]) -> None:
    from everest.prepare.stats import MOTION

    typer.echo(f"{document['measured']} of {document['videos']} videos measured")
    options = []
    for name in ("mean", "std"):
        typer.echo(f"{name} of red, green, blue: " + ", ".join(f"{value:.4f}" for value in document[name]))
        options.append(f"--set 'data.{name}={[round(value, DIGITS) for value in document[name]]}'")
    typer.echo(f"for a recipe: {' '.join(options)}")
    for name in ("seconds", "frames"):
        if document[name]:
            least, middle, most = (document[name][key] for key in ("min", "median", "max"))
            typer.echo(f"{name}: {least:.4g} to {most:.4g}, median {middle:.4g}")
    strides = ", ".join(f"{clip} frames: {stride or 'none'}" for clip, stride in document["strides"].items())
    typer.echo(f"largest stride that fits 95 % of the videos, for clips of {strides}")
    if document["numbers"]:
        facts = (f"{name} {value:g}" for name, value in document["numbers"].items())
        typer.echo(f"labels: {', '.join(facts)}")
    camera = document["camera"]
    typer.echo(
        f"camera: it moves in {camera['moving']:.0%} of some pairs of neighboring frames; in "
        f"{camera['unexplained']:.0%}, a change has another cause (cuts, fast motion, large objects)"
    )
    typer.echo(f"motion: {document['motion']:.4f} ({MOTION})")
    if document["classes"]:
        typer.echo(f"largest class / smallest: {document['imbalance']:g}")
    for row in document["classes"]:
        motion = "" if row["motion"] is None else f", motion {row['motion']:.4f}"
        typer.echo(f"  {row['class']}: {counted(row['videos'], 'video')}{motion}")
