"""The plot of an evaluation with several keep ratios or thresholds: metrics by the cost of a view."""

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
    """A metric of a head over the keep ratios, or over the thresholds."""

    name: str
    metric: str
    rows: Rows  # of `sweep`
    results: Rows  # of the head, one for each row


def draw_sweep(path: Path, rows: Rows, heads: Heads) -> Figure:
    """Write a PNG of a metric by the GMACs of a view, with a point per keep ratio and a line per head.

    Thresholds have points and lines of their own, at the mean GMACs of their views. Bars are the 95 %
    intervals, dotted lines the chance levels. Heads of classes share a panel, in percent: top-1 or the mean
    average precision. Each head of numbers has a panel with its mean absolute error. Several single-label
    heads also have a line for the share of videos with all heads correct.

    Args:
        rows: `sweep` of `everest eval --json`.
    """
    rows = sorted(rows, key=lambda row: row["gmacs"])
    fixed = [row for row in rows if "above" not in row]
    by_content = [row for row in rows if "above" in row]
    shares, numbers = [], []
    for head in heads:
        metric, lines = MEASURED_BY[head.task], []
        for kind, own in (("", fixed), (", by threshold", by_content)):
            results = [row["heads"][head.name] for row in own] if head.name else own
            if own:
                lines.append(MetricLine(f"{head.name or METRICS[metric].title}{kind}", metric, own, results))
        if METRICS[metric].percent:
            shares += lines
        else:
            numbers.append(lines)
    if "action_top1" in rows[0]:
        own = fixed or by_content
        shares.append(MetricLine("all correct", "action_top1", own, own))
    panels = [*([shares] if shares else []), *numbers]
    with png_figure(path, (8, HEIGHT * len(panels))) as figure:
        axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
        for panel, lines in zip(axes, panels, strict=True):
            _draw_panel(panel, lines)
        title = "top-1" if [panel.get_ylabel() for panel in axes] == ["top-1 (%)"] else "metrics"
        # Not a panel's title: the names of the points may be above a panel.
        by = " and ".join(["keep ratio"] * bool(fixed) + ["threshold"] * bool(by_content))
        results = [result for lines in panels for line in lines for result in line.results]
        bars = "bars: 95 % intervals, " if any("intervals" in result for result in results) else ""
        figure.suptitle(f"{title} by {by} ({bars}dotted: chance)\n", fontsize=12)
        axes[-1].set_xlabel("GMACs of a view (the papers' GFLOPs)")
    return figure


def _draw_panel(panel: Axes, lines: Sequence[MetricLine]) -> None:
    highest: dict[tuple[float, str], float] = {}  # of the points of a row, by its GMACs and its name
    drawn = []
    for number, (_, metric, rows, results) in enumerate(lines):
        gmacs = [row["gmacs"] for row in rows]
        # None, of a metric without a value, becomes nan, which is not drawn.
        values = np.array([result[metric] for result in results], dtype=np.float64)
        intervals = [result.get("intervals", {}).get(metric, (None, None)) for result in results]
        low, high = np.array(intervals, dtype=np.float64).T
        style: Any = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number % len(LINES)]}
        bars = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
        drawn.append(panel.errorbar(gmacs, values, bars, marker="o", linewidth=2, capsize=4, **style))
        if (chance := METRICS[metric].chance) is not None:
            panel.axhline(results[0][chance], linestyle=":", color=style["color"])
        for row, y in zip(
            rows, np.fmax(values, high), strict=True
        ):  # none, of few videos of a class or of one group
            name = f"above {row['above']:g}" if "above" in row else f"keep {row['keep']:g}"
            place = (row["gmacs"], name)
            highest[place] = float(np.fmax(highest.get(place, np.nan), y))
    for (x, name), y in highest.items():
        if not np.isfinite(y):
            continue
        text = panel.annotate(name, (x, y), xytext=(0, 8), textcoords="offset points")
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
