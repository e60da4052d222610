"""`everest predict`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from everest.annotations.kinds import Kind
from everest_cli import options as o
from everest_cli.option_groups import ModelOptions, grouped
from everest_cli.output import Display, say

if TYPE_CHECKING:
    from everest.config.heads import Heads
    from everest.lists.sample import Sample


PredictionFormat = Literal["table", "json", "csv", "srt"]


@grouped
def predict(
    videos: o.Videos,
    model: ModelOptions,
    top: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Number of classes [5, and all present].")
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Classes over time: a window slides over each video.")
    ] = False,
    window: Annotated[
        float | None,
        typer.Option(
            "--window", min=0.001, metavar="SECONDS", help="Window of the timeline [a clip's span]."
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            "--step", min=0.001, metavar="SECONDS", help="Step of the timeline [--window: no overlap]."
        ),
    ] = None,
    bouts: Annotated[
        bool,
        typer.Option(
            "--bouts", help="Print bouts instead of windows: neighboring windows of one class, merged."
        ),
    ] = False,
    background: Annotated[
        float | None,
        typer.Option(
            "--background", metavar="P", help="Windows less probable than this have no class in bouts."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="F", help="Also draw the bouts or numbers of a video to this PNG."),
    ] = None,
    kind: Annotated[
        PredictionFormat | None, typer.Option("--format", help="[by the suffix of --output, else table]")
    ] = None,
    to: Annotated[
        Kind | None,
        typer.Option(
            "--to", metavar="KIND", help="Write bouts as annotations: csv, boris, elan, … (--output)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="F", help="Write to this file and print its name."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Probabilities with the temperature that fine-tuning chose."),
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Predict the most likely classes or the numbers of videos, or of every window of long ones.

    Example: everest predict match.mp4 --checkpoint runs/finetune --timeline --step 1 -o match.srt
    """
    from everest.errors import RecipeError
    from everest.lists.inputs import named_samples
    from everest.system.files import check_new_file, refuse_inputs, write_text
    from everest_cli.prediction_text import TEXTS, by_head, with_bouts

    text_format = "table" if to else _format(kind, output, as_json)
    if not timeline and (window or step):
        raise RecipeError("--window and --step belong to --timeline")
    if not timeline and (bouts or plot or to or background is not None):
        raise RecipeError("--bouts, --background, --plot and --to belong to --timeline")
    if to is not None and (kind is not None or as_json or output is None):
        raise RecipeError(f"--to {to}: needs --output, and no --format or --json")
    if background is not None and not (bouts or plot or to or text_format == "json"):
        raise RecipeError("--background: changes bouts; add --bouts, --plot, --to or --json")
    if text_format == "srt" and not timeline:
        raise RecipeError("--format srt: subtitles need the times of --timeline")
    if output is not None and to is None:
        check_new_file(output, option="--output", overwrite=overwrite)
    if plot is not None:
        from everest.figures.curves import check_target

        check_target(plot, option="--plot", overwrite=overwrite)

    from everest.checkpoints.load import all_weights
    from everest.inference.predictions import predict, predict_timeline
    from everest.inference.top_classes import check_options

    opened = model.open(views=1 if timeline else None, calibrated=calibrated)
    # Also refuses an autoencoder, before the videos are listed.
    check_options(
        opened.classes.heads, top=top, background=background, bouts=bouts, annotations=to is not None
    )
    samples = named_samples(videos, root=model.data)
    if text_format == "srt" and len(samples) > 1:
        raise RecipeError(f"--format srt: subtitles are of one video, not of {len(samples)}")
    if plot is not None and len(samples) > 1:
        raise RecipeError(f"--plot: a figure is of one video, not of {len(samples)}")
    if plot is not None and output is not None and plot.resolve() == output.resolve():
        raise RecipeError(f"--plot {plot}: also the file of --output; choose another name")
    inputs = [*all_weights(opened.file), *model.inputs, *videos, *(sample.video for sample in samples)]
    files = {} if output is None else {output: [sample.path for sample in samples]}
    if to is not None and output is not None:
        from everest.annotations.formats import files_of

        files = files_of(output, dict.fromkeys(sample.path for sample in samples), to)
        for path in files:
            check_new_file(path, option="--output", overwrite=overwrite)
    for option, path in (*(("--output", path) for path in files), ("--plot", plot)):
        if path is not None:
            refuse_inputs(path, inputs, option=option)
    with Display(quiet=model.quiet) as display:
        if timeline:
            rows = predict_timeline(
                opened,
                samples,
                window=window,
                step=step,
                top=top,
                batch=model.batch,
                report=display.report,
                background=background,
            )
        else:
            rows = predict(
                opened,
                samples,
                top=top,
                batch=model.batch,
                workers=model.workers,
                report=display.report,
            )
    for row in rows:
        found = [bout for bouts_of_head in by_head(row.get("bouts", [])).values() for bout in bouts_of_head]
        if found and all(bout["label"] is None for bout in found):
            say(f"{row['video']}: all is background; without --background the probabilities are shown")
        if plot is not None and row["windows"]:
            _draw(plot, row, opened.classes.heads, background)
    if to is not None:
        for path in _write(files, to, samples, rows):
            typer.echo(path)
    else:
        text = TEXTS[text_format](with_bouts(rows) if bouts and text_format != "json" else rows)
        if output is None:
            typer.echo(text, nl=False)
        else:
            write_text(output, text)
            typer.echo(output)
    if any("error" in row for row in rows):
        raise typer.Exit(4)


def _write(
    files: Mapping[Path, Sequence[str]], to: Kind, samples: Sequence[Sample], rows: Sequence[dict[str, Any]]
) -> list[Path]:
    """Write the bouts of the videos that could be read as annotations; returns the files written.

    Args:
        files: each with its videos; see `everest.annotations.formats.files_of`.
    """
    from everest.annotations.formats import write_annotations
    from everest.annotations.times import VideoTimes
    from everest.inference.bouts import automated_bouts

    pairs = [(sample, row) for sample, row in zip(samples, rows, strict=True) if row["windows"]]
    found = [bout for sample, row in pairs for bout in automated_bouts(sample.path, row["bouts"])]
    times = {sample.path: VideoTimes.of(sample.video) for sample, _ in pairs}
    written = []
    for file, names in files.items():
        of_file = {name: times[name] for name in names if name in times}
        if of_file:
            bouts = [bout for bout in found if bout.video in of_file]
            written += write_annotations(file, bouts, to, times=of_file)
    return written


def _draw(path: Path, row: dict[str, Any], heads: Heads, background: float | None) -> None:
    """Draw the timeline of a video."""
    from everest.figures.timeline import draw_task_timeline, draw_timeline
    from everest_cli.prediction_text import by_head

    title, bouts = Path(row["video"]).name, by_head(row["bouts"])
    if all(head.task == "single-label" for head in heads):
        draw_timeline(path, bouts, title=title, background=background)
    else:
        draw_task_timeline(path, row["windows"], bouts, heads, title=title)


def _format(kind: PredictionFormat | None, output: Path | None, as_json: bool) -> PredictionFormat:
    """Return the requested format; raises RecipeError if --json contradicts --format."""
    from everest.errors import RecipeError

    if as_json and kind not in (None, "json"):
        raise RecipeError(f"--json and --format {kind}: choose one")
    if as_json:
        return "json"
    suffix: Any = "" if output is None else output.suffix.removeprefix(".")
    return kind or (suffix if suffix in get_args(PredictionFormat) else "table")
