"""The figure of a timeline of other tasks than one class: a lane per class, or the curve of a number.

W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from everest.config.heads import Heads
from everest.figures.curves import COLORS
from everest.figures.fonts import any_script
from everest.figures.timeline import LONGEST_NAME, SHORTEST, Bouts, colors_of
from everest.system.files import write_atomically
from everest.system.text import counted, escape_bytes

LANES: Final = 20  # our choice: the classes with most seconds; the figure counts the others
LANE: Final = 0.35  # inches
CURVE: Final = 2.0  # inches of the panel of a number
GAP: Final = 0.2  # of a lane, above its bars

Windows = Sequence[Mapping[str, Any]]


@any_script()
def draw_task_timeline(
    path: Path, windows: Windows, bouts: Mapping[str, Bouts], heads: Heads, *, title: str
) -> None:
    """Draw a PNG 1500 pixels wide with a panel per head.

    A head of classes has a lane for each class, with a bar for each bout, as high as its probability. A head
    of numbers has a curve through the centers of the windows.

    Args:
        windows: W of `everest predict --timeline --json`, at least one.
        bouts: by the name of a head, which is empty for a single one.
    """
    begin, end = windows[0]["start"], max(window["end"] for window in windows)
    end = max(end, begin + SHORTEST)
    lanes = {head.name: _lanes(bouts[head.name]) for head in heads if head.task != "regression"}
    heights = [LANE * max(len(lanes[head.name]), 2) if head.name in lanes else CURVE for head in heads]
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(15, sum(heights) + 0.5 * len(heads) + 0.8), dpi=100, layout="constrained")
        panels = figure.subplots(len(heads), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for head, panel in zip(heads, panels, strict=True):
            if head.name in lanes:
                shown = lanes[head.name]
                _draw_lanes(panel, shown, seconds=end - begin)
                num_others = len({bout["index"] for bout in bouts[head.name]} - {None}) - len(shown)
                others = f"not shown: {counted(num_others, 'other class')}" if num_others else ""
            else:
                _draw_numbers(panel, windows, head.name)
                others = ""
            panel.set_title(
                ", ".join(filter(None, [escape_bytes(head.name), others])),
                fontsize=11,
                loc="left",
                parse_math=False,
            )
            panel.grid(alpha=0.3, axis="x" if head.name in lanes else "both")
        panels[-1].set(xlabel="seconds", xlim=(begin, end))
        texts = ["the height of a bar is its mean probability"] if lanes else []
        if len(lanes) < len(heads):
            texts.append("a point is the center of a window")
        figure.suptitle(escape_bytes(f"{title}: {'; '.join(texts)}"), fontsize=11, parse_math=False)
        write_atomically(path, lambda part: figure.savefig(part, format="png", bbox_inches="tight"))


def _lanes(bouts: Bouts) -> dict[int, Bouts]:
    """Return the bouts of the classes with most seconds, by class, the longest first."""
    by_class: dict[int, list[Mapping[str, Any]]] = {}
    for bout in bouts:
        if bout["index"] is not None:
            by_class.setdefault(bout["index"], []).append(bout)
    longest = sorted(by_class, key=lambda index: -_seconds(by_class[index]))
    return {index: by_class[index] for index in longest[:LANES]}


def _seconds(bouts: Bouts) -> float:
    return sum(bout["end"] - bout["start"] for bout in bouts)


def _draw_lanes(panel: Axes, lanes: Mapping[int, Bouts], *, seconds: float) -> None:
    """Draw a lane per class, the first on top, pale to the full height and solid up to the probability."""
    colors, names = colors_of(lanes), []
    for lane, (index, bouts) in enumerate(lanes.items()):
        for height, alpha in ((lambda _: 1.0, 0.25), (lambda bout: bout["probability"], 1.0)):
            bars = [
                _bar(bout["start"], bout["end"], bottom=-lane - 1, height=(1 - GAP) * height(bout))
                for bout in bouts
            ]
            panel.add_collection(PolyCollection(bars, facecolors=colors[index], alpha=alpha, linewidths=0))
        name = bouts[0]["label"]
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-15:]}"
        time = _seconds(bouts)
        names.append(escape_bytes(f"{short}  {time:.1f} s, {time / seconds:.1%}"))
    count = len(lanes)
    panel.set_yticks([-lane - 0.5 for lane in range(count)], names, parse_math=False)
    panel.set_ylim(-max(count, 1), 0)
    if not count:
        panel.text(0.5, 0.5, "no class is present", transform=panel.transAxes, ha="center", va="center")


def _bar(left: float, right: float, *, bottom: float, height: float) -> list[tuple[float, float]]:
    return [(left, bottom), (left, bottom + height), (right, bottom + height), (right, bottom)]


def _draw_numbers(panel: Axes, windows: Windows, head: str) -> None:
    """Draw the number of each window at its center."""
    centers = [(window["start"] + window["end"]) / 2 for window in windows]
    predictions = [window["heads"][head] if head else window["predictions"] for window in windows]
    values = [prediction[0]["value"] for prediction in predictions]
    panel.plot(centers, values, "o-", color=COLORS[0], markersize=4, linewidth=1.5)
    panel.set_ylabel("predicted value")
