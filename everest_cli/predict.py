"""`everest predict`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.option_groups import ModelOptions, grouped
from everest_cli.output import Display, say
from everest_cli.prediction_output import PredictionFormat, PredictionOutput, format_of
from everest_cli.timeline_options import TimelineOptions

if TYPE_CHECKING:
    from everest.annotations.bout import Bout


@grouped
def predict(
    model: ModelOptions,
    of_timeline: TimelineOptions,
    videos: o.Videos,
    top: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Number of classes [5, and all present].")
    ] = None,
    kind: Annotated[
        PredictionFormat | None, typer.Option("--format", help="[by the suffix of --output, else table]")
    ] = None,
    output: o.OutputFile = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Predict the most likely classes or the numbers of videos, or of every window of long ones.

    Example: everest predict match.mp4 --checkpoint runs/finetune --timeline --step 1 -o match.srt
    """
    from everest.lists.inputs import named_samples
    from everest_cli.prediction_text import by_head

    of_timeline.check()
    timeline, plot, truth, to = of_timeline.timeline, of_timeline.plot, of_timeline.truth, of_timeline.to
    if to is not None and (kind is not None or as_json or output is None):
        raise RecipeError(f"--to {to}: needs --output, and no --format or --json")
    text = "table" if to else format_of(kind, output, as_json=as_json)
    target = PredictionOutput(path=output, text=text, to=to, plot=plot, overwrite=overwrite)
    target.check(timeline=timeline)
    of_timeline.check_rules(as_json=text == "json")

    from everest.checkpoints.load import all_weights
    from everest.inference.predictions import predict
    from everest.inference.timeline import predict_timeline
    from everest.inference.top_classes import check_options
    from everest.inference.truth import check_classes, check_scored, read_truth, score_timelines

    rules = of_timeline.rules()
    opened = model.open(views=1 if timeline else None)
    classes = opened.classes  # also refuses an autoencoder, before the videos are listed
    check_options(
        classes.heads,
        top=top,
        rules=rules,
        bouts=of_timeline.bouts,
        annotations=to is not None,
    )
    samples = named_samples(videos, root=model.data)
    true_bouts: dict[str, list[Bout]] = {}
    if truth is not None:
        check_scored(classes.heads)
        true_bouts, _ = read_truth(truth, [sample.path for sample in samples])
    inputs = [*all_weights(opened.file), *model.inputs, *videos, *(sample.video for sample in samples)]
    target.check_samples(samples, inputs if truth is None else [*inputs, truth])
    scores = None
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
            )
        else:
            rows = predict(
                opened, samples, top=top, batch=model.batch, workers=model.workers, report=display.report
            )
        if truth is not None:
            scores = score_timelines(samples, rows, true_bouts, report=display.report)
    for row in rows:
        found = [bout for bouts_of_head in by_head(row.get("bouts", [])).values() for bout in bouts_of_head]
        if found and rules.background is not None and all(bout["label"] is None for bout in found):
            say(f"{row['video']}: all is background; without --background the probabilities are shown")
        if plot is not None and row["windows"]:
            of_person = None if scores is None else true_bouts[samples[0].path]
            target.draw(row, classes, rules.background, of_person)
    target.write(samples, rows, scores, bouts=of_timeline.bouts, classes=classes)
    if any("error" in row for row in rows):
        raise typer.Exit(4)
