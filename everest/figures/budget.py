"""The figure of a time budget: the share of time of each class, in all recordings and in each group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from everest.figures.style import COLORS, escape_dollars, saved_figure, shorten

MOST_COLUMNS: Final = 4  # heuristic: of panels


def draw_budget(path: Path, document: Mapping[str, Any]) -> Figure:
    """Draw a panel for each class of a `time_budget`; its bars have their 95 % intervals.

    The first bar is of all recordings, the others are of the `groups` of the document.
    """
    parts = {"all recordings": document, **document.get("groups", {})}
    classes = [entry["name"] for entry in document["classes"]]
    columns = min(len(classes), MOST_COLUMNS)
    rows = math.ceil(len(classes) / columns)
    size = 1.5 + 2.6 * columns, rows * (0.8 + 0.3 * len(parts)) + 0.3
    with saved_figure(path, size, points=11, dpi=100) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for panel, name in zip(panels, classes, strict=False):
            for place, part in enumerate(parts.values()):
                (seconds,) = (entry["seconds"] for entry in part["classes"] if entry["name"] == name)
                amounts = seconds["estimate"], *seconds["interval"]
                share, low, high = (100 * amount / part["footage"] for amount in amounts)
                spread = [[share - low], [high - share]]
                panel.barh(place, share, xerr=spread, color=COLORS[place > 0], alpha=0.7, capsize=3)
            panel.set_title(escape_dollars(shorten(name, 30)), loc="left", fontsize=11)
            panel.set_yticks(range(len(parts)), [escape_dollars(shorten(each, 30)) for each in parts])
            panel.tick_params(labelbottom=True)  # also above a place without a panel
            panel.grid(alpha=0.3, axis="x")
        panels[0].invert_yaxis()
        for panel in panels[len(classes) :]:
            panel.remove()
        figure.supxlabel("share of time (%), with 95 % interval", fontsize=11)
    return figure
