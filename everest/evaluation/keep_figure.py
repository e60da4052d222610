"""The plot of an evaluation with several keep ratios: the metric of each head by the cost of a view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everest.config.heads import Heads
from everest.config.metrics import MEASURED_BY, METRICS
from everest.figures.curves import COLORS, LINES
from everest.figures.drawing import name_entries, png_figure
from everest.system.text import escape_bytes

HEIGHT: Final = 5.0  # inches of a panel

Rows = Sequence[Mapping[str, Any]]


class MetricLine(NamedTuple):
    """A metric of a head over the keep ratios."""

    name: str
    metric: str
    results: Rows  # one per keep ratio


def draw_sweep(path: Path, rows: Rows, heads: Heads) -> Figure:
    """Write a PNG of a metric by the GMACs of a view, with a point per keep ratio and a line per head.

    Bars are the 95 % intervals, dotted lines the chance levels. Heads of classes share a panel, in percent:
    top-1 or the mean average precision. Each head of numbers has a panel with its mean absolute error.
    Several single-label heads also have a line for the share of videos with all heads correct.

    Args:
        rows: `sweep` of `everest eval --json`.
    """
    rows = sorted(rows, key=lambda row: row["gmacs"])
    shares, numbers = [], []
    for head in heads:
        results = [row["heads"][head.name] for row in rows] if head.name else rows
        metric = MEASURED_BY[head.task]
        line = MetricLine(head.name or METRICS[metric].title, metric, results)
        (shares if METRICS[metric].percent else numbers).append(line)
    if "action_top1" in rows[0]:
        shares.append(MetricLine("all correct", "action_top1", rows))
    panels = [*([shares] if shares else []), *([line] for line in numbers)]
    with png_figure(path, (8, HEIGHT * len(panels))) as figure:
        axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
        for panel, lines in zip(axes, panels, strict=True):
            _draw_panel(panel, rows, lines)
        title = "top-1" if [panel.get_ylabel() for panel in axes] == ["top-1 (%)"] else "metrics"
        # Not a panel's title: the names of the points may be above a panel.
        figure.suptitle(f"{title} by keep ratio (bars: 95 % intervals, dotted: chance)\n", fontsize=12)
        axes[-1].set_xlabel("GMACs of a view (the papers' GFLOPs)")
    return figure


def _draw_panel(panel: Axes, rows: Rows, lines: Sequence[MetricLine]) -> None:
    gmacs = [row["gmacs"] for row in rows]
    highest, drawn = np.full(len(rows), -np.inf), []
    for number, (_, metric, results) in enumerate(lines):
        # None, of a metric without a value, becomes nan, which is not drawn.
        values = np.array([result[metric] for result in results], dtype=np.float64)
        low, high = np.array([result["intervals"][metric] for result in results], dtype=np.float64).T
        style: Any = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number % len(LINES)]}
        bars = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
        drawn.append(panel.errorbar(gmacs, values, bars, marker="o", linewidth=2, capsize=4, **style))
        if (chance := METRICS[metric].chance) is not None:
            panel.axhline(results[0][chance], linestyle=":", color=style["color"])
        highest = np.fmax(highest, np.fmax(values, high))  # few videos of a class give no interval
    for row, x, y in zip(rows, gmacs, highest, strict=True):
        if not np.isfinite(y):
            continue
        text = panel.annotate(f"keep {row['keep']:g}", (x, y), xytext=(0, 8), textcoords="offset points")
        text.set(ha="center", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
    titles = {METRICS[line.metric].title for line in lines if line.metric != "action_top1"}
    if METRICS[lines[0].metric].percent:
        panel.set(ylim=(0, 100), ylabel=f"{', '.join(sorted(titles, reverse=True))} (%)")
    else:
        panel.set_ylim(bottom=0)
        title = METRICS[lines[0].metric].title
        name = escape_bytes(lines[0].name)
        panel.set_ylabel(title if name == title else f"{title}, {name}", parse_math=False)
    panel.margins(x=0.08)
    panel.set_xlim(left=0)
    panel.grid(alpha=0.3)
    if len(lines) > 1:
        legend = panel.legend(drawn, ["head"] * len(drawn), frameon=False)
        name_entries(legend, [line.name for line in lines])
