"""The figure of a sweep: the mean of each arm with its interval, one below the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from everest.figures.curves import LONGEST_NAME
from everest.figures.drawing import COLORS, plain, png_figure, shorten

FIGURE: Final = "report.png"
SEEDS: Any = {"linestyle": "", "marker": "o", "markersize": 4, "markerfacecolor": "white", "color": "0.5"}
LEVELS: Final = {"chance": ":", "majority": "--"}
INCHES_OF_ARM: Final = 0.4


def draw_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a PNG.

    A point is the mean of an arm, a bar its 95 % interval, a small dot a seed; GMACs are of its training.

    Args:
        document: of `everest sweep report --json`.
    """
    arms = [arm for arm in document["arms"] if arm["values"]]
    with png_figure(path, (10, 1.5 + INCHES_OF_ARM * len(arms))) as figure:
        panel = figure.subplots()
        for row, arm in enumerate(arms):
            low, high = arm["interval"] or (arm["mean"], arm["mean"])
            panel.plot(arm["values"], [row] * len(arm["values"]), **SEEDS)
            bars = [[arm["mean"] - low], [high - arm["mean"]]]
            panel.errorbar([arm["mean"]], [row], xerr=bars, color=COLORS[0], marker="o", capsize=4)
        for key, style in LEVELS.items():
            for level in {arm[key] for arm in arms if arm[key] is not None}:
                panel.axvline(level, linestyle=style, color="black", linewidth=1, zorder=0)
        names = [f"{plain(shorten(arm['arm'], LONGEST_NAME))}\n{arm['gmacs']:.4g} GMACs" for arm in arms]
        panel.set_yticks(range(len(arms)), names, fontsize="small")
        panel.invert_yaxis()
        panel.set_xlabel(f"{plain(document['title'])}{' (%)' if document['percent'] else ''}")
        title = "bars: 95 % intervals; small dots: seeds; dotted: chance; dashed: most frequent class"
        panel.set_title(title, fontsize="small", loc="left")
        panel.grid(alpha=0.3, axis="x")
