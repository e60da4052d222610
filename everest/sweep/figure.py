"""The figure of a sweep: a metric with its interval by the GMACs of training, one point for each arm."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes

from everest.figures.curves import LONGEST_NAME
from everest.figures.drawing import COLORS, plain, png_figure, shorten

FIGURE: Final = "report.png"
MARKERS: Final = ("o", "s", "^", "D", "v", "P")  # the next one when all colors are used
SEEDS: Any = {"linestyle": "", "marker": "o", "markersize": 4, "markerfacecolor": "white", "zorder": 3}
LEVELS: Final = {"chance": (":", "dotted: chance"), "majority": ("--", "dashed: the most frequent class")}
LINE: Any = {"arrowstyle": "-", "linestyle": ":", "alpha": 0.5, "relpos": (0, 0.5)}  # to a label
HEIGHT: Final = 5.0  # inches, for up to FITTING labels
FITTING: Final = 16
NEAR: Final = 0.02  # our choice: arms whose costs differ by less of the range are drawn next to each other
EQUAL: Final = 0.01  # our choice: costs that differ by less are drawn as one, because equal GMACs round steps
APART: Final = 0.03  # of the range, between them
EDGE: Final = 0.02  # our choice: of the range, from a level to the border of the panel
WIDE_RATIO: Final = 20.0  # our choice: of the costs, from which the axis is logarithmic


def draw_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a PNG.

    A point is the mean of an arm, a bar its 95 % interval, a small dot a seed. Arms of equal costs are drawn
    next to each other. Labels are at the right side, in the order of the means.

    Args:
        document: of `everest sweep report --json`.
    """
    arms = [arm for arm in document["arms"] if arm["values"]]
    height = HEIGHT * max(1.0, len(arms) / FITTING)
    with png_figure(path, (10, height)) as figure:
        panel = figure.subplots()
        places = _draw_arms(panel, arms, percent=document["percent"])
        levels = _draw_levels(panel, arms)
        _draw_names(panel, arms, places)
        unit = " (%)" if document["percent"] else ""
        panel.set_ylabel(f"{plain(document['title'])}{unit}")
        panel.set_xlabel("GMACs of training (forward passes of all steps)")
        panel.set_title(
            f"bars: 95 % intervals over seeds; small dots: seeds; equal costs are side by side{levels}",
            fontsize="small",
            loc="left",
        )
        panel.grid(alpha=0.3)


def _draw_arms(panel: Axes, arms: Sequence[Mapping[str, Any]], *, percent: bool) -> np.ndarray:
    """Draw the points, their bars and their seeds; returns the place of each arm, (arms,)."""
    costs = np.array([arm["gmacs"] for arm in arms])  # (arms,)
    if np.ptp(costs) <= EQUAL * costs.max():
        costs = np.full_like(costs, costs.mean())
    logarithmic = bool((costs > 0).all()) and costs.max() > WIDE_RATIO * costs.min()
    if logarithmic:
        panel.set_xscale("log")
    scaled = np.log10(costs) if logarithmic else costs
    shifted = _side_by_side(scaled)
    places = 10**shifted if logarithmic else shifted
    for number, (arm, x) in enumerate(zip(arms, places, strict=True)):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]
        panel.plot([x] * len(arm["values"]), arm["values"], **SEEDS, color=color)
        low, high = arm["interval"] or (arm["mean"], arm["mean"])
        bars = [[arm["mean"] - low], [high - arm["mean"]]]
        panel.errorbar(
            [x], [arm["mean"]], bars, color=color, marker=marker, markersize=8, capsize=4, linewidth=2
        )
    if np.ptp(costs) == 0:  # arms side by side have no costs of their own
        panel.set_xticks([costs[0]], [f"{costs[0]:.4g}"])
    panel.margins(x=0.1, y=0.08)
    panel.autoscale_view()
    panel.set_xlim(panel.get_xlim())
    low, high = panel.get_ylim()
    panel.set_ylim((max(low, -2), min(high, 102)) if percent else (low, high))  # t intervals may be larger
    return places


def _draw_names(panel: Axes, arms: Sequence[Mapping[str, Any]], places: np.ndarray) -> None:
    """Draw the names of the arms next to the final limits, as near to their means as their number allows."""
    low, high = panel.get_ylim()
    heights = [(arm["mean"] - low) / (high - low) for arm in arms]
    heights = _apart(heights, least=1 / max(FITTING, len(arms) + 1))
    for number, (arm, x, height) in enumerate(zip(arms, places, heights, strict=True)):
        color = COLORS[number % len(COLORS)]
        panel.annotate(
            plain(shorten(arm["arm"], LONGEST_NAME)),
            (x, arm["mean"]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=color,
            annotation_clip=False,
            arrowprops={**LINE, "color": color},
        )


def _draw_levels(panel: Axes, arms: Sequence[Mapping[str, Any]]) -> str:
    """Draw what a model reaches that has learned nothing, where it is in the limits; returns their legend."""
    text, (low, high) = "", panel.get_ylim()
    edge = EDGE * (high - low)
    for key, (style, word) in LEVELS.items():
        levels = {arm[key] for arm in arms if arm[key] is not None}
        for level in levels:
            panel.axhline(level, linestyle=style, color="black", linewidth=1, zorder=0)
        text += f"; {word}" if levels else ""
        low = min([low, *(level - edge for level in levels)])
        high = max([high, *(level + edge for level in levels)])
    panel.set_ylim(low, high)
    return text


def _side_by_side(values: np.ndarray) -> np.ndarray:
    """Values that are nearly equal, moved apart around their common place."""
    extent = float(np.ptp(values)) or max(abs(float(values[0])), 1.0)
    moved = values.astype(np.float64)
    order = np.argsort(values, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(values[order]) > NEAR * extent) + 1)
    for group in groups:
        offsets = np.arange(len(group)) - (len(group) - 1) / 2
        moved[np.sort(group)] = values[group].mean() + offsets * APART * extent
    return moved


def _apart(heights: Sequence[float], *, least: float) -> list[float]:
    """Heights in the same order with distances of at least `least`, near the given ones and up to 1."""
    order = np.argsort(heights, kind="stable")
    moved = np.array(heights, dtype=np.float64)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    if len(order):
        moved[order[-1]] = min(moved[order[-1]], 1.0)
    for after, before in itertools.pairwise(order[::-1]):
        moved[before] = min(moved[before], moved[after] - least)
    return moved.tolist()
