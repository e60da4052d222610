"""The figures of timelines and of their time budgets.

A timeline has, for each recording and head, a lane per class, or a curve of numbers. The bars of a lane are
the predicted bouts, as high as their mean probability. Bouts of a person are black bars above them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from everest.config.heads import Head
from everest.errors import DataError
from everest.figures.style import COLORS, LIGHT_GRAY, escape_dollars, saved_figure, shorten
from everest.system.text import plural
from everest_workflows.annotations.bout import BACKGROUND, UNSCORED, Bout
from everest_workflows.recordings.bouts import PredictedBout, PredictedBouts
from everest_workflows.recordings.timelines import Timelines, VideoTimeline

# The colors of all figures except black, which is for a person's bouts, and further colors that differ most
# and are neither gray nor faint.
CLASS_COLORS: Final = (
    *COLORS[:-1],
    *("#A6D854", "#8C6D31", "#F0027F", "#6A3D9A", "#843C39", "#FFBB78", "#A1D99B"),
    *("#FF9896", "#2CA02C", "#E41A1C", "#7B4173", "#9E9AC8", "#17BECF", "#637939"),
)
MAX_PANELS: Final = 24  # heuristic: only the first panels are drawn; the figure counts the others
MAX_LANES: Final = 20  # heuristic: only the first lanes of a panel are drawn; its title counts the others
LEGEND: Final = "Light bars: the model predicts this class. Darker part: its mean probability, full at 100 %."
MAX_SCALES: Final = 4.0  # heuristic: longest / shortest recording up to which all share a time scale
LANE_GAP: Final = 0.15  # fraction of a lane between its bars and the next lane
MAX_COLUMNS: Final = 4  # heuristic: columns of panels of a time budget

Panel = tuple[VideoTimeline, Head, Sequence[PredictedBout], Sequence[Bout]]


def draw_timelines(
    path: Path, timelines: Timelines, bouts: Sequence[PredictedBouts], labeled: Mapping[str, Sequence[Bout]]
) -> Figure:
    """Draw a figure, 1500 pixels wide, with a panel for each head of each recording that has a window.

    The bouts come from `Timelines.bouts`; `labeled` are the bouts of a person, by the path of a recording.
    """
    heads = timelines.classes.heads
    panels = [
        (recording, head, by_head[head.name], labeled.get(recording.path, ()))
        for recording, by_head in zip(timelines.videos, bouts, strict=True)
        for head in heads
        if len(recording.starts)
    ]
    if not panels:
        raise DataError("no recording has a window, so there is no timeline to draw")
    shown_panels = panels[:MAX_PANELS]
    lanes_of = {head: _find_lanes(timelines, head, shown_panels) for head in heads}
    ends = [end - start for start, end in (recording.extent for recording, *_ in shown_panels)]
    is_one_scale = max(ends) <= MAX_SCALES * min(ends)
    heights = [  # inches for the title and the seconds, and for a curve or lanes
        0.6 + (2.0 if head.task == "regression" else 0.35 * min(max(len(lanes_of[head]), 2), MAX_LANES))
        for _, head, *_ in shown_panels
    ]
    with saved_figure(path, (15, sum(heights) + 0.5), points=11, dpi=100) as figure:
        axes = figure.subplots(len(shown_panels), squeeze=False, height_ratios=heights)[:, 0]
        for area, (recording, head, predicted, of_person) in zip(axes, shown_panels, strict=True):
            title_parts = [Path(recording.video).name, head.name]
            lanes, names = lanes_of[head], timelines.classes.names_of_head(head)
            if head.task == "regression":
                column = sum(each.outputs for each in heads[: heads.index(head)])
                centers = (recording.starts + recording.ends) / 2
                values = recording.outputs[:, column]
                area.plot(centers, values, "o-", color=COLORS[0], markersize=4, linewidth=1.5)
                area.set_ylabel("predicted value")
                area.grid(alpha=0.3)
            else:
                _draw_lanes(area, predicted, of_person, lanes[:MAX_LANES], names)
                if len(lanes) > MAX_LANES:
                    title_parts.append(f"{plural(len(lanes) - MAX_LANES, 'other class')} not shown")
            area.set_title(escape_dollars(", ".join(filter(None, title_parts))), loc="left", fontsize=11)
            start, end = recording.extent
            area.set_xlim(start, start + max(ends) if is_one_scale else end)
        axes[-1].set_xlabel("seconds")
        notes = [LEGEND] if any(lanes_of.values()) else []
        notes += ["Black bars: the given annotations."] if labeled else []
        if len(panels) > MAX_PANELS:
            notes.append(f"{plural(len(panels) - MAX_PANELS, 'other panel')} not shown.")
        figure.supxlabel("  ".join(notes), fontsize=10)
    return figure


def _find_lanes(timelines: Timelines, head: Head, panels: Sequence[Panel]) -> list[str]:
    """The classes that occur in the panels of a head, in the model's order; background is last."""
    names = [] if head.task == "regression" else timelines.classes.names_of_head(head)
    occurring: set[str] = set()
    for _, head_of_panel, predicted, of_person in panels:
        if head_of_panel == head:
            occurring |= {bout.label or BACKGROUND for bout in predicted}
            occurring |= {bout.label for bout in of_person} - {BACKGROUND, UNSCORED}
    ordered = dict.fromkeys([*names, *sorted(occurring)])
    return sorted((name for name in ordered if name in occurring), key=lambda name: name == BACKGROUND)


def _draw_lanes(
    panel: Axes,
    predicted: Sequence[PredictedBout],
    labeled: Sequence[Bout],
    lanes: Sequence[str],
    names: Sequence[str],
) -> None:
    """Draw a lane per class, the first on top; a class has the same color in all figures of a model."""
    fraction = 0.3 if labeled else 0.0  # fraction of a lane for the bars of a person
    full = 1 - LANE_GAP - fraction  # height of a probability of 1, as a fraction of a lane
    colors = dict(zip([name for name in names if name != BACKGROUND], cycle(CLASS_COLORS), strict=False))
    for lane, name in enumerate(lanes):
        color = colors.get(name, "black")
        bouts = [bout for bout in predicted if (bout.label or BACKGROUND) == name]
        times = [(bout.start, bout.end) for bout in bouts]
        pale_color = LIGHT_GRAY if name == BACKGROUND else color
        _draw_bars(panel, times, -lane - 1, [full] * len(bouts), pale_color, opacity=0.25)
        if name != BACKGROUND:
            _draw_bars(panel, times, -lane - 1, [full * bout.probability for bout in bouts], color)
        true = [(bout.start, bout.end) for bout in labeled if bout.label == name]
        _draw_bars(panel, true, -lane - LANE_GAP - fraction, [fraction] * len(true), "black")
    labels = [escape_dollars(shorten(name, 40)) for name in lanes]
    panel.set_yticks([-lane - 0.5 for lane in range(len(lanes))], labels)
    panel.set_ylim(-max(len(lanes), 1), 0)
    panel.grid(alpha=0.3, axis="x")
    if not lanes:
        panel.text(0.5, 0.5, "no class is present", transform=panel.transAxes, ha="center", va="center")


def _draw_bars(
    panel: Axes,
    times: Sequence[tuple[float, float]],
    bottom: float,
    heights: Sequence[float],
    color: str,
    opacity: float = 1.0,
) -> None:
    bars = [
        [(start, bottom), (start, bottom + height), (end, bottom + height), (end, bottom)]
        for (start, end), height in zip(times, heights, strict=True)
    ]
    panel.add_collection(PolyCollection(bars, facecolors=color, alpha=opacity, linewidths=0))


def draw_budget(path: Path, document: Mapping[str, Any]) -> Figure:
    """Draw a panel for each class of a time budget: points with their 95 % intervals, in percent of the time.

    The first point shows all recordings, the others the groups.
    """
    rows = document["rows"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    classes = list(dict.fromkeys(row["class"] for row in rows))
    labels = [escape_dollars(shorten(group or "all recordings", 30)) for group in groups]
    columns = min(len(classes), MAX_COLUMNS)
    lines = math.ceil(len(classes) / columns)
    size = 1.5 + 2.6 * columns, lines * (0.8 + 0.3 * len(groups)) + 0.3
    with saved_figure(path, size, points=11, dpi=100) as figure:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        for panel, name in zip(panels, classes, strict=False):
            for index, row in enumerate(row for row in rows if row["class"] == name):
                seconds = row["seconds"], *row["interval"]
                fraction, low, high = (100 * amount / row["footage"] for amount in seconds)
                spread = [[fraction - low], [high - fraction]]
                panel.errorbar(fraction, index, xerr=spread, fmt="o", color=COLORS[index > 0], capsize=3)
            panel.set_title(escape_dollars(shorten(name, 30)), loc="left", fontsize=11)
            panel.set_yticks(range(len(groups)), labels)
            panel.tick_params(labelbottom=True)  # also for a panel above an empty place
            panel.grid(alpha=0.3, axis="x")
        panels[0].invert_yaxis()
        for panel in panels[len(classes) :]:
            panel.remove()
        figure.supxlabel("fraction of time (%), with 95 % interval", fontsize=11)
    return figure
