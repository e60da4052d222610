"""What `everest budget` prints: the half-widths of a plan, the estimates, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import typer

from everest.system.text import plural


def print_plan(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each number of windows: half-widths in all recordings, or in the worst group."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    parts = {
        "all recordings": groups[:1],
        f"the worst of {len(groups) - 1} groups, windows of each": groups[1:],
    }
    for title, shown_groups in parts.items():
        part_rows = [row for row in rows if row["group"] in shown_groups]
        for index, windows in enumerate(sorted({row["windows"] for row in part_rows})):
            window_rows = [row for row in part_rows if row["windows"] == windows]
            percents = {
                name: max(100 * row["half_width"][name] / row["footage"] for row in window_rows)
                for name in window_rows[0]["half_width"]
            }
            if not index:
                columns = "".join(f"{name:>12}" for name in percents)
                typer.echo(
                    f"{title}: half of the 95 % interval, in % of the time\n  windows  minutes{columns}"
                )
            halves = "".join(f"{percent:>12.1f}" for percent in percents.values())
            typer.echo(f"  {windows:>7}{window_rows[0]['minutes']:>9.1f}{halves}")


def format_interval(interval: Sequence[float]) -> str:
    return "({:.1f} to {:.1f})".format(*interval)


def print_budget(document: Mapping[str, Any]) -> None:
    """Print a line for each class, for all recordings and each group."""
    from everest_workflows.recordings.budget_report import mark_alone

    windows = (
        f"{document['checked']} of {document['windows']} windows of {document['window']:g} s are checked"
    )
    typer.echo(f"{windows}; the model saves {100 * document['saved_windows']:.0f} % of the windows")
    width = max(len(row["class"]) for row in document["rows"])
    header = (
        f"  {'class':<{width}}{'seconds':>9} {'(95 % interval)':<18}{'%':>5}{'bouts':>7} {'(interval)':<14}"
    )
    for group, rows in groupby(document["rows"], key=itemgetter("group")):
        for index, row in enumerate(rows):
            if not index:
                of_group = f"{group or 'all recordings'}, {plural(row['windows'], 'checked window')}"
                typer.echo(f"\n{of_group}\n{header} checked windows alone  % seen")
            interval, of_bouts = format_interval(row["interval"]), format_interval(row["bouts_interval"])
            watched = row["watched_only"]
            alone = f"{watched['seconds']:.1f} {format_interval(watched['interval'])}{mark_alone(row)}"
            seen = "" if row["checked_percent"] is None else f"{row['checked_percent']:.1f}"
            typer.echo(
                f"  {row['class']:<{width}}{row['seconds']:>9.1f} {interval:<18}{row['percent']:>5.1f}"
                f"{row['bouts']:>7.1f} {of_bouts:<14} {alone:<22}{seen:>7}"
            )
    if means := document["means"]:
        fractions = ", ".join(f"{row['class']} {row['percent']:.1f} ± {row['sem']:.1f} %" for row in means)
        typer.echo(f"\nmean ± SEM over {means[0]['n']} groups: {fractions}")
    typer.echo(f"methods: {document['methods']}")


def list_notes(document: Mapping[str, Any], command: str, num_strata: int) -> Iterator[str]:
    """Yield notes on the scope of the estimates, and on how many windows halve the intervals."""
    from everest_workflows.recordings.budget_files import PAGE_SUFFIX
    from everest_workflows.recordings.budget_report import mark_alone
    from everest_workflows.recordings.checked_windows import windows_for_half

    if document["unused"]:
        yield f"{plural(document['unused'], 'bout')} in no checked window: not counted"
    rows = document["rows"]
    if any(map(mark_alone, rows)):
        yield "*: estimated without the model, which makes the interval no narrower"
    if any(high - low > row["bouts"] for row in rows for low, high in [row["bouts_interval"]]):
        yield "few windows show where bouts begin: more or longer windows narrow the intervals of bouts"
    borrowed = [row["borrowed"] for row in rows if row["group"]]
    if any(borrowed):
        least, most = (f"{100 * weight:.0f}" for weight in (min(borrowed), max(borrowed)))
        yield (
            f"groups borrow {least} to {most} % of their error rates from the others, also in 'checked "
            "windows alone'; '% seen' is of the group's own checked windows only"
        )
    yield "the intervals hold for these recordings, if windows were sampled at random and none was left out"
    if more := windows_for_half(document["windows"], document["checked"]) - document["checked"]:
        lists = (Path(f"more{number if number > 1 else ''}.csv") for number in count(1))
        new = next(file for file in lists if not (file.exists() or file.with_suffix(PAGE_SUFFIX).exists()))
        more = math.ceil(more / max(num_strata, 1))
        windows = plural(more, "more window") + (" in each group" if num_strata else "")
        yield f"intervals half as wide need about {windows}: {command} --draw {more} --output {new}"
