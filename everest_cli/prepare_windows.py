"""`everest prepare windows`: a list of windows of long videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from everest_cli import options as o
from everest_cli.output import Display, print_json, say


def windows(
    sources: o.Videos,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.01, help="Length of a window.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="LIST", help="The list to write (.csv).")],
    step: Annotated[
        float | None,
        typer.Option("--step", metavar="S", min=0.01, help="Seconds from a window to the next [its length]."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", metavar="H", min=0, help="Hours of windows in all [all].")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Number of windows in all [all].")
    ] = None,
    by: Annotated[
        Literal["uniform", "activity"],
        typer.Option("--by", help="Spread evenly, or mostly where the video's packets are large."),
    ] = "uniform",
    per_video: Annotated[
        int | None,
        typer.Option(
            "--per-video",
            metavar="N",
            min=1,
            help="Most windows of a video [by activity: twice its even share].",
        ),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--labels", metavar="F", help="Annotations of any kind, which label the windows; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the random choices.")] = 0,
    data: o.ListRoot = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a list of windows of long videos, which every stage reads; nothing is decoded.

    A killed call resumes when the same command is repeated.

    Example: everest prepare windows RECORDINGS --seconds 10 --hours 5 --by activity -o windows.csv
    """
    from everest.errors import RecipeError
    from everest.footage.windows import WindowSettings, write_windows
    from everest.lists.inputs import named_samples
    from everest.system.files import refuse_inputs
    from everest.system.text import counted

    if hours is not None and count is not None:
        raise RecipeError("--hours and --count both state the number of windows; use one of them")
    settings = WindowSettings(
        seconds=seconds,
        step=seconds if step is None else step,
        by=by,
        count=count if hours is None else int(hours * 3600 / seconds),
        cap=per_video,
        seed=seed,
    )
    samples = named_samples(sources, root=data)
    refuse_inputs(output, [*sources, *(labels or [])], option="--output")
    with Display(quiet=quiet) as display:
        result = write_windows(
            samples, output, settings, annotations=labels or (), overwrite=overwrite, report=display.report
        )
    print_json(result.to_dict()) if as_json else typer.echo(output)
    if not quiet:
        numbers = f"{counted(result.windows, 'window')} of {counted(result.videos, 'video')}"
        say(f"{numbers}, {result.hours:.2f} hours")
        for name, number in (result.labels or {}).items():
            say(f"  {name}: {number}")
    if result.failed:
        raise typer.Exit(4)
