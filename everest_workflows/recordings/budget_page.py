"""The page of a time budget: the seconds of each class, for all recordings and for each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from everest.evaluation.page import Section, Summary
from everest.system.text import plural

TITLES: Final = (
    "class",
    "seconds (95 % CI)",
    "% of the time",
    "bouts (95 % CI)",
    "checked windows alone",
    "% seen",
)
MAX_CLASSES: Final = 4  # default: in the answer


def summarize_budget(document: Mapping[str, Any], notes: Sequence[str], figure: str | None) -> Summary:
    """What the page of `everest budget` shows.

    Args:
        document: of `everest budget --json`.
        notes: on the scope of the estimates.
        figure: path of a PNG of the fractions of the time.
    """
    windows = plural(document["windows"], "window")
    by_group = {name: [*rows] for name, rows in groupby(document["rows"], key=itemgetter("group"))}
    table = [
        [name or "All recordings", *(_with_interval(row["seconds"], row["interval"]) for row in rows)]
        for name, rows in by_group.items()
    ]
    names = ["", *(row["class"] for row in by_group[""])]
    sections = [Section(heading="Seconds (95 % CI)", titles=names, rows=table, figure=figure)]
    for group, of_group in by_group.items():
        checked = f"{plural(of_group[0]['windows'], 'checked window')}."
        cells = [_list_cells(row) for row in of_group]
        sections.append(
            Section(heading=group or "All recordings", lines=[checked], titles=TITLES, rows=cells)
        )
    first = [row for row in document["rows"] if not row["group"]][:MAX_CLASSES]
    amounts = (
        "{} {:.1f} s ({:.1f} to {:.1f})".format(row["class"], row["seconds"], *row["interval"])
        for row in first
    )
    return Summary(
        title="Time budget",
        answer=[
            f"estimated time: {'; '.join(amounts)}",
            f"of {document['footage']:.1f} s; 95 % CI, from {document['checked']} checked of {windows} of "
            f"{document['window']:g} s",
            f"the model saves {100 * document['saved_windows']:.0f} % of the windows",
        ],
        details={"Scope": notes},
        sections=sections,
        methods=document["methods"],
    )


def _list_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    alone, seen = row["watched_only"], row["checked_percent"]
    return (
        row["class"],
        _with_interval(row["seconds"], row["interval"]),
        f"{row['percent']:.1f}",
        _with_interval(row["bouts"], row["bouts_interval"]),
        _with_interval(alone["seconds"], alone["interval"]) + mark_alone(row),
        "" if seen is None else f"{seen:.1f}",
    )


def mark_alone(row: Mapping[str, Any]) -> str:
    """The mark of an estimate without the model."""
    return "" if row["saved_windows"] else "*"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
