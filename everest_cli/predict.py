"""`everest predict`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.option_groups import ModelOptions, grouped
from everest_cli.output import Display, say
from everest_cli.predict_live import LiveOptions, print_live
from everest_cli.timeline_options import TimelineOptions

if TYPE_CHECKING:
    from everest.annotations.bout import Bout
    from everest.annotations.kinds import Kind
    from everest.lists.classes import Classes
    from everest.lists.sample import Sample


PredictionFormat = Literal["table", "json", "csv", "srt"]


@grouped
def predict(
    model: ModelOptions,
    of_timeline: TimelineOptions,
    of_live: LiveOptions,
    videos: o.SomeVideos = None,
    top: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Number of classes [5, and all present].")
    ] = None,
    kind: Annotated[
        PredictionFormat | None, typer.Option("--format", help="[by the suffix of --output, else table]")
    ] = None,
    output: o.OutputFile = None,
    overwrite: o.OverwriteFile = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Probabilities with the temperature that fine-tuning chose.")
    ] = False,
    keep_above: Annotated[
        float | None,
        typer.Option("--keep-above", metavar="IMPORTANCE", help="Keep the tokens of higher importance only."),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Predict the most likely classes or the numbers of videos, or of every window of long ones.

    Example: everest predict match.mp4 --checkpoint runs/finetune --timeline --step 1 -o match.srt
    """
    from everest.lists.inputs import named_samples
    from everest.system.files import check_new_file, refuse_inputs, write_text
    from everest.system.json_text import json_text
    from everest_cli.prediction_text import TEXTS, by_head, costs_text, scores_text, with_bouts

    if of_live.live is not None:
        if videos or output or kind:
            raise RecipeError(
                "--live: replaces videos, and prints JSON lines; leave VIDEO, --output and --format out"
            )
        return print_live(of_live, model, of_timeline, top=top, calibrated=calibrated, above=keep_above)
    if not videos:
        raise typer.BadParameter(
            "name videos, folders or lists, or a source with --live", param_hint="VIDEO…"
        )
    of_timeline.check()
    timeline, plot, truth, to = of_timeline.timeline, of_timeline.plot, of_timeline.truth, of_timeline.to
    if to is not None and (kind is not None or as_json or output is None):
        raise RecipeError(f"--to {to}: needs --output, and no --format or --json")
    text_format = "table" if to else _format(kind, output, as_json)
    if text_format == "srt" and not timeline:
        raise RecipeError("--format srt: subtitles need the times of --timeline")
    if output is not None and to is None:
        check_new_file(output, option="--output", overwrite=overwrite)
    if plot is not None:
        from everest.figures.curves import check_target

        check_target(plot, option="--plot", overwrite=overwrite)

    from everest.checkpoints.load import all_weights
    from everest.inference.bouts import PLAIN
    from everest.inference.predictions import predict
    from everest.inference.timeline import predict_timeline
    from everest.inference.top_classes import check_options
    from everest.inference.truth import check_classes, check_scored, read_truth, score_timelines

    rules, idle = of_timeline.rules(), of_timeline.idle()
    if rules != PLAIN and not (of_timeline.bouts or plot or truth or to or text_format == "json"):
        changing = of_timeline.given & {"--background", "--threshold", "--smooth", "--min-seconds"}
        names = " and ".join(sorted(changing))
        raise RecipeError(f"{names}: changes bouts; add --bouts, --plot, --to, --truth or --json")
    opened = model.open(views=1 if timeline else None, calibrated=calibrated, above=keep_above)
    classes = opened.classes  # also refuses an autoencoder, before the videos are listed
    check_options(
        classes.heads,
        top=top,
        rules=rules,
        bouts=of_timeline.bouts,
        annotations=to is not None,
        idle=idle is not None,
    )
    samples = named_samples(videos, root=model.data)
    true_bouts: dict[str, list[Bout]] = {}
    if truth is not None:
        check_scored(classes.heads)
        true_bouts, _ = read_truth(truth, [sample.path for sample in samples])
    if text_format == "srt" and len(samples) > 1:
        raise RecipeError(f"--format srt: subtitles are of one video, not of {len(samples)}")
    if plot is not None and len(samples) > 1:
        raise RecipeError(f"--plot: a figure is of one video, not of {len(samples)}")
    if plot is not None and output is not None and plot.resolve() == output.resolve():
        raise RecipeError(f"--plot {plot}: also the file of --output; choose another name")
    inputs = [*all_weights(opened.file), *model.inputs, *videos, *(sample.video for sample in samples)]
    inputs += [] if truth is None else [truth]
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
        if truth is not None:  # before anything is computed
            check_classes(true_bouts, classes.of_head(classes.heads[0]), report=display.report)
        if timeline:
            rows = predict_timeline(
                opened,
                samples,
                window=of_timeline.window,
                step=of_timeline.step,
                top=top,
                batch=model.batch,
                report=display.report,
                rules=rules,
                idle=idle,
            )
        else:
            rows = predict(
                opened, samples, top=top, batch=model.batch, workers=model.workers, report=display.report
            )
        scores = None
        if truth is not None:
            scores = score_timelines(
                samples, rows, true_bouts, tolerance=of_timeline.tolerance, report=display.report
            )
    for row in rows:
        found = [bout for bouts_of_head in by_head(row.get("bouts", [])).values() for bout in bouts_of_head]
        if found and all(bout["label"] is None for bout in found):
            say(f"{row['video']}: all is background; without --background the probabilities are shown")
        if plot is not None and row["windows"]:
            of_person = None if scores is None else true_bouts[samples[0].path]
            _draw(plot, row, classes, rules.background, of_person)
    if to is not None:
        for path in _write(files, to, samples, rows):
            typer.echo(path)
        if scores is not None:
            say(scores_text(scores).rstrip())
    else:
        shown = with_bouts(rows) if of_timeline.bouts and text_format != "json" else rows
        text = TEXTS[text_format](shown)
        if scores is not None and text_format == "json":
            text = json_text({**scores, "timelines": rows}, indent=2) + "\n"
        elif scores is not None and text_format == "table":
            text += scores_text(scores)
        elif scores is not None:
            say(scores_text(scores).rstrip())
        if output is None:
            typer.echo(text, nl=False)
        else:
            write_text(output, text)
            typer.echo(output)
    if not model.quiet:
        for line in costs_text(rows):
            say(line)
    if any("error" in row for row in rows):
        raise typer.Exit(4)


def _write(
    files: Mapping[Path, Sequence[str]], to: Kind, samples: Sequence[Sample], rows: Sequence[dict[str, Any]]
) -> list[Path]:
    """Write the bouts of the videos that could be read as annotations, without background; returns the files.

    Args:
        files: each with its videos; see `everest.annotations.formats.files_of`.
    """
    from everest.annotations.bout import BACKGROUND
    from everest.annotations.formats import write_annotations
    from everest.annotations.times import VideoTimes
    from everest.inference.bouts import automated_bouts

    pairs = [(sample, row) for sample, row in zip(samples, rows, strict=True) if row["windows"]]
    found = [
        bout
        for sample, row in pairs
        for bout in automated_bouts(sample.path, row["bouts"])
        if bout.label != BACKGROUND
    ]
    times = {sample.path: VideoTimes.of(sample.video) for sample, _ in pairs}
    written = []
    for file, names in files.items():
        of_file = {name: times[name] for name in names if name in times}
        if of_file:
            bouts = [bout for bout in found if bout.video in of_file]
            written += write_annotations(file, bouts, to, times=of_file)
    return written


def _draw(
    path: Path, row: dict[str, Any], classes: Classes, background: float | None, truth: Sequence[Bout] | None
) -> None:
    """Draw the timeline of a video, below the bouts of a person if there are any."""
    from everest.figures.timeline import draw_task_timeline, draw_timeline
    from everest.inference.truth import drawn_bouts
    from everest_cli.prediction_text import by_head

    title, bouts, heads = Path(row["video"]).name, by_head(row["bouts"]), classes.heads
    if truth is not None:
        names = classes.of_head(heads[0])
        bouts = {"truth": drawn_bouts(truth, names), "prediction": bouts[""]}
        heads = tuple(replace(heads[0], name=name) for name in bouts)
    if all(head.task == "single-label" for head in heads):
        draw_timeline(path, bouts, title=title, background=background)
    else:
        draw_task_timeline(path, row["windows"], bouts, heads, title=title, aligned=truth is not None)


def _format(kind: PredictionFormat | None, output: Path | None, as_json: bool) -> PredictionFormat:
    """Return the requested format; raises RecipeError if --json contradicts --format."""
    if as_json and kind not in (None, "json"):
        raise RecipeError(f"--json and --format {kind}: choose one")
    if as_json:
        return "json"
    suffix: Any = "" if output is None else output.suffix.removeprefix(".")
    return kind or (suffix if suffix in get_args(PredictionFormat) else "table")
