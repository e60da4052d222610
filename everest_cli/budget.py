"""`everest budget`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say


def budget(
    timeline: Annotated[
        Path, typer.Option("--timeline", metavar="T", help="JSON file of predict --timeline --json.")
    ],
    checked: Annotated[
        Path | None,
        typer.Option("--checked", metavar="F", help="The windows of --draw with the bouts of a person."),
    ] = None,
    draw: Annotated[
        int | None, typer.Option("--draw", min=2, metavar="N", help="Draw N windows to check, to --output.")
    ] = None,
    window: Annotated[
        float, typer.Option("--window", min=0.1, metavar="SECONDS", help="Length of the windows to draw.")
    ] = 10.0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the draw.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="LIST", help="CSV file of the windows to check.")
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Estimate seconds and bouts of each class in all footage, with 95 % intervals.

    Example: everest budget --timeline timeline.json --checked checked.csv
    """
    from dataclasses import replace

    from everest.annotations.bout_table import COLUMNS, WINDOW
    from everest.errors import DataError, RecipeError, first_names
    from everest.inference.truth import read_drawn_length, read_timelines, read_truth
    from everest.metrics.budget import DRAWN, counted_bouts, draw_windows, footage_windows, time_budget
    from everest.system.files import check_new_file, refuse_inputs, write_table
    from everest_cli.prediction_text import budget_text

    if (draw is None) == (checked is None):
        raise RecipeError("give --draw N with --output LIST, or --checked F for the windows that were drawn")
    if (draw is None) != (output is None):
        raise RecipeError("--draw N and --output LIST go together")
    extents, predicted = read_timelines(timeline)
    if draw is not None and output is not None:
        windows = footage_windows(extents, window)
        if draw > len(windows):
            raise RecipeError(f"--draw {draw}: the footage has {len(windows)} windows of {window:g} s")
        refuse_inputs(output, [timeline], option="--output")
        check_new_file(output, option="--output", overwrite=overwrite)
        drawn = draw_windows(windows, draw, seed=seed)
        rows = [(one.video, f"{one.start:.3f}", f"{one.end:.3f}", DRAWN, repr(window)) for one in drawn]
        write_table(output, [(*COLUMNS, WINDOW), *rows])
        typer.echo(output)
        return
    assert checked is not None
    bouts, unknown = read_truth(checked, extents)
    if unknown:
        names = f"{first_names(unknown)}; use the names that --draw wrote"
        raise DataError(f"{checked}: no video of the timeline, or one that has another name there: {names}")
    of_person = {video: [replace(bout, video=video) for bout in bouts.get(video, ())] for video in extents}
    of_person, notices = counted_bouts(extents, of_person)
    for text in notices:
        say(text)
    document = time_budget(extents, predicted, of_person, seconds=read_drawn_length(checked))
    if as_json:
        print_json(document)
    else:
        typer.echo(budget_text(document), nl=False)
