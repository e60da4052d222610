"""`everest prepare stats`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import Display, print_json, say


def stats(
    source: Annotated[
        Path, typer.Argument(parser=local_path, metavar="SOURCE", help="A list, or a folder of videos.")
    ],
    most: Annotated[
        int | None,
        typer.Option("--videos", metavar="N", min=1, help="Use N random videos of each class [all]."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="F.png", help="Write thumbnails with labels and motion."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="F.yaml", help="Write a recipe with this mean and std."),
    ] = None,
    base: Annotated[
        str, typer.Option("--base", metavar="R", help="The recipe that --output extends.")
    ] = "custom",
    channels: Annotated[
        int, typer.Option("--channels", metavar="1|3", help="1: mean and std of luma, for gray clips.")
    ] = 3,
    fps: o.FileFps = None,
    data: o.Root = None,
    classes: o.ClassesFile = None,
    task: o.TaskName = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the choice of videos.")
    ] = 0,
    workers: o.PrepareWorkers = None,
    limit: o.Limit = 600.0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Print mean and std of the colors, lengths, class balance and the amount of motion.

    Motion is the mean absolute difference of neighboring gray frames, from 0 (still) to 1.

    Example: everest prepare stats train.csv --picture train.png
    """
    from everest.errors import RecipeError
    from everest.figures.drawing import check_target
    from everest.lists.labeled import read_labeled
    from everest.prepare.stats import take_stats
    from everest.suggest.auto import check_base, pixel_recipe, pixel_settings
    from everest.system.files import check_new_file, write_text

    if channels not in (1, 3):
        raise RecipeError(f"--channels {channels}: 3 for colors, or 1 for luma")
    if output is not None:
        if output.suffix not in (".yaml", ".yml"):
            raise RecipeError(f"--output {output}: the output is a recipe; end its name in .yaml")
        check_new_file(output, option="--output", overwrite=overwrite)
        check_base(base, channels=channels)
    if picture is not None:
        check_target(picture, option="--picture", overwrite=overwrite)
    root = data or (source if source.is_dir() else source.parent)
    labeled = read_labeled(source, root=root, classes=classes, task=task)
    for notice in filter(None, (labeled.data.notice, labeled.notice)):
        say(notice)
    with Display(quiet=quiet) as display:
        statistics = take_stats(
            labeled.data.samples,
            labeled.data.class_names,
            most=most,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            limit=limit,
            report=display.report,
            fps=fps,
            channels=channels,
            task=labeled.task,
        )
    if picture is not None:
        from everest.prepare.contact_sheet import draw_contact_sheet

        draw_contact_sheet(picture, statistics)
    document = statistics.to_dict() | {"picture": str(picture) if picture else None}
    settings = pixel_settings(document, channels=channels)
    if output is not None:
        write_text(output, pixel_recipe(output, base, settings, source=source))
    document |= {"data": settings, "recipe": str(output) if output else None}
    print_json(document) if as_json else _print_stats(document)


def _print_stats(document: dict[str, Any]) -> None:
    from everest.prepare.camera_stats import camera_sentence

    typer.echo(f"{document['measured']} of {document['videos']} videos measured")
    colors = "red, green, blue" if len(document["mean"]) == 3 else "luma"
    for name in ("mean", "std"):
        typer.echo(f"{name} of {colors}: " + ", ".join(f"{value:.4f}" for value in document[name]))
    options = " ".join(f"--set 'data.{key}={value}'" for key, value in document["data"].items())
    typer.echo(f"for a recipe: {options}")
    for name in ("seconds", "frames"):
        if document[name]:
            least, middle, most = (document[name][key] for key in ("min", "median", "max"))
            typer.echo(f"{name}: {least:.4g} to {most:.4g}, median {middle:.4g}")
    strides = ", ".join(f"{clip} frames: {stride or 'none'}" for clip, stride in document["strides"].items())
    rate = "" if document["fps"] is None else f" at {document['fps']:g} frames per second"
    typer.echo(f"largest stride that fits 95 % of the videos{rate}, for clips of {strides}")
    _print_labels(document)
    _print_motion(document)
    typer.echo(camera_sentence(document["camera"]))
    if document["picture"]:
        say(f"image: {document['picture']}")
    if document["recipe"]:
        say(f"recipe: {document['recipe']}")


def _print_labels(document: dict[str, Any]) -> None:
    if (numbers := document["numbers"]) is not None:
        typer.echo("labels: " + ", ".join(f"{name} {value:g}" for name, value in numbers.items()))
        if document["equal_numbers"]:
            say(f"warning: all numbers are {numbers['min']:g}, so a model cannot learn them; check the list")
        return
    if not document["has_classes"]:
        return
    typer.echo(f"largest class / smallest: {document['imbalance']:g}")
    if (of_a_video := document["classes_of_a_video"]) is not None:
        typer.echo(
            f"classes of a video: {of_a_video['mean']:.3g} on average; {of_a_video['without']:.1%} of the "
            "videos have none"
        )


def _print_motion(document: dict[str, Any]) -> None:
    """The videos and the motion of each class; without classes the motion of all videos."""
    from everest.prepare.stats import MOTION
    from everest.system.text import counted

    rows = document["classes"]
    motions = ["-" if row["motion"] is None else f"{row['motion']:.4f}" for row in rows]
    if not document["has_classes"]:
        typer.echo(f"motion: {motions[0]} ({MOTION})")
        return
    typer.echo(f"videos and motion of each class ({MOTION}):")
    for row, motion in zip(rows, motions, strict=True):
        typer.echo(f"  {row['class']}: {counted(row['videos'], 'video')}, motion {motion}")
