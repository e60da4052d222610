"""`everest prepare windows`: a list of windows of long videos."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from everest_cli import options as o
from everest_cli.option_values import Task
from everest_cli.output import Display, print_json, say

MOST_HOURS: Final = 10_000_000  # more than 1000 years


def windows(
    sources: o.Videos,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.01, help="Length of a window.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="LIST", help="The list to write (.csv).")],
    step: Annotated[
        float | None,
        typer.Option("--step", metavar="S", min=0.01, help="Seconds between window starts [--seconds]."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", metavar="H", min=0, help="Total hours of windows [no limit].")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Total number of windows [no limit].")
    ] = None,
    by: Annotated[
        Literal["uniform", "activity"],
        typer.Option("--by", help="Spread evenly, or mostly where something moves."),
    ] = "uniform",
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--labels", metavar="F", help="Annotations of any kind that label the windows; repeatable."
        ),
    ] = None,
    fps: o.FileFps = None,
    task: Annotated[
        Task | None, typer.Option("--task", help="Kind of labels [multi-label if classes overlap].")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed.")] = 0,
    data: o.ListRoot = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a list of windows of long videos; intact files are not decoded.

    Example: everest prepare windows RECORDINGS --seconds 10 --hours 5 --by activity -o windows.csv
    """
    from everest.errors import RecipeError
    from everest.footage.windows import Labeling, WindowSettings, write_windows
    from everest.lists.inputs import named_samples
    from everest.system.files import refuse_inputs
    from everest.system.text import counted

    if hours is not None and count is not None:
        raise RecipeError("--hours and --count both limit the windows; use one of them")
    if hours is not None and not hours <= MOST_HOURS:
        raise RecipeError(f"--hours {hours:g}: must be a number of at most {MOST_HOURS} hours")
    if not labels and (fps or task):
        raise RecipeError("--fps and --task need --labels")
    settings = WindowSettings(
        seconds=seconds,
        step=seconds if step is None else step,
        by=by,
        count=count if hours is None else int(hours * 3600 / seconds),
        seed=seed,
    )
    labeling = None
    if labels:
        labeling = Labeling(files=tuple(labels), fps=fps, task=task)
    samples = named_samples(sources, root=data)
    refuse_inputs(
        output, [*sources, *(labels or []), *{sample.video for sample in samples}], option="--output"
    )
    with Display(quiet=quiet) as display:
        result = write_windows(
            samples, output, settings, labeling=labeling, overwrite=overwrite, report=display.report
        )
    document = asdict(result)
    document |= {"list": document.pop("file")} | (document.pop("labeled") or {})
    print_json(document) if as_json else typer.echo(output)
    if not quiet:
        numbers = f"{counted(result.windows, 'window')} of {counted(result.videos, 'video')}"
        say(f"{numbers}, {result.hours:.2f} hours")
        if result.labeled is not None:
            _show_labels(output, result.labeled)
    if result.failed or result.damaged:
        raise typer.Exit(4)


def _show_labels(output: Path, labeled: dict[str, Any]) -> None:
    """Print the numbers of the labels, and the command that follows."""
    numbers = ", ".join(f"{name} {count}" for name, count in labeled["labels"].items())
    say(f"{labeled['task']}: {numbers}")
    words = ["everest", "prepare", "split", str(output), "--group", "column:group"]
    words += [] if labeled["task"] == "single-label" else ["--task", labeled["task"]]
    words += [] if labeled["classes"] is None else ["--classes", labeled["classes"]]
    say(f"next:\n  {shlex.join(words)}")
