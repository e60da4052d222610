"""The page of a time budget: the seconds of each class, for all recordings and for each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from everest.evaluation.page import Section, Summary
from everest.system.text import plural

TITLES: Final = ("class", "seconds", "95 % CI", "% of the time", "bouts", "checked windows alone")
MAX_CLASSES: Final = 4  # default: in the answer


def summarize_budget(document: Mapping[str, Any], notes: Sequence[str], figure: str | None) -> Summary:
    """What the page of `everest budget` shows.

    Args:
        document: of `everest budget --json`.
        notes: on the scope of the estimates.
        figure: path of the PNG of --plot.
    """
    windows = plural(document["windows"], "window")
    sections = []
    for group, rows in groupby(document["rows"], key=itemgetter("group")):
        of_group = list(rows)
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
    if figure is not None:
        sections.append(Section(heading="Fractions of the time", figure=figure))
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
    alone = row["watched_only"]
    return (
        row["class"],
        f"{row['seconds']:.1f}",
        "{:.1f} to {:.1f}".format(*row["interval"]),
        f"{row['percent']:.1f}",
        f"{row['bouts']:.1f}",
        "{:.1f} ({:.1f} to {:.1f})".format(alone["seconds"], *alone["interval"]),
    )
