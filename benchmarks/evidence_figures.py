"""The figures of benchmarks/evidence/tables.md, from the results of the sweeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from everest.figures.style import COLORS
from everest.sweep.report import draw_report, make_report
from everest.system.files import atomic_file

ARMS: Final = ("methods", "keep-ratios")  # the parts whose arms are drawn
BUDGETS: Final = "steps"  # the part that is drawn by each budget
STYLE: Final[Any] = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def draw_figures(results: Mapping[str, dict[str, Any]], folder: Path) -> Sequence[Path]:
    """Draw the figures of the parts that have run."""
    drawn = []
    for part in (*ARMS, BUDGETS):
        if part in results:
            drawn.append(folder / f"evidence-{part}.png")
            draw = draw_budgets if part == BUDGETS else draw_report
            draw(drawn[-1], make_report(results[part]))
    return drawn


def draw_line(
    panel: Axes,
    x: Sequence[float],
    spreads: Sequence[tuple[float, tuple[float, float] | None]],
    *,
    color: str,
    label: str,
) -> None:
    """Draw means with their intervals, where there are intervals."""
    bars = [
        [mean - interval[0] if interval else 0.0 for mean, interval in spreads],
        [interval[1] - mean if interval else 0.0 for mean, interval in spreads],
    ]
    means = [mean for mean, _ in spreads]
    panel.errorbar(x, means, bars, color=color, marker="o", capsize=3, label=label)


def draw_budgets(path: Path, report: Mapping[str, Any]) -> None:
    """Draw the metric of each method by its steps, its GMACs and its hours, like EVEREST Figures 1a, 5, 7.

    Args:
        report: of a sweep whose arms are called `METHOD, NUMBER steps`. Other arms are horizontal lines.
    """
    points: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    levels: dict[str, float] = {}
    for arm in (arm for arm in report["arms"] if arm["values"]):
        method, _, steps = arm["arm"].removesuffix(" steps").rpartition(", ")
        if method:
            points[method].append((int(steps), arm))
        else:
            levels[arm["arm"]] = arm["mean"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        titles = ("steps of pre-training", "GMACs of training (all steps)", "hours of training")
        for panel, title, key in zip(panels, titles, ("steps", "gmacs", "hours"), strict=True):
            for (method, arms), color in zip(points.items(), COLORS, strict=False):
                ordered = sorted(arms, key=lambda arm: arm[0])
                x = [steps if key == "steps" else arm[key] for steps, arm in ordered]
                spreads = [(arm["mean"], arm["interval"]) for _, arm in ordered]
                draw_line(panel, x, spreads, color=color, label=method)
            for name, level in levels.items():
                panel.axhline(level, color="0.4", linestyle="--", label=name)
            panel.set_xscale("log")
            if key == "steps":
                panel.set_xticks(sorted({steps for arms in points.values() for steps, _ in arms}))
            else:
                panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=20))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
            panel.set_xlabel(title)
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(f"{report['title']} (%)")
        panels[0].legend(frameon=False)
        with atomic_file(path) as part:
            figure.savefig(part, format="png")
