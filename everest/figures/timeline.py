"""The figure of a timeline: colored bars over time, of the bouts of `everest predict --timeline`.

A long video is drawn in several rows of equal length, one below the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from everest.figures.curves import COLORS
from everest.figures.fonts import any_script, name_entries
from everest.system.files import write_atomically
from everest.system.text import counted, escape_bytes

MOST_ROWS: Final = 12
ONE_ROW: Final = 120.0  # seconds that are not divided
LENGTHS: Final = (30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds of a row
# After those for curves, further colors that are distinct from them and from gray.
PALETTE: Final = (
    *COLORS[:6],
    *("#F0E442", "#882255", "#332288", "#117733", "#999933", "#661100", "#6699CC", "#AA4499", "#44AA99"),
    *("#DDCC77", "#CC6677", "#7B68EE", "#8B4513", "#00CED1"),
)
OTHERS: Final = "#FF1493"  # classes after the first 20
BACKGROUND: Final = "#BBBBBB"
SHORTEST: Final = 1e-3  # seconds that are drawn of a video
LONGEST_NAME: Final = 40  # letters
LEGEND_COLUMNS: Final = 3
ROW: Final = 0.75  # inches
LEGEND_LINE: Final = 0.22
OTHER_WORDS: Final = 1.3  # inches of the title, the axis of seconds and the legend's title
STYLE: Final[Any] = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}

Bouts = Sequence[Mapping[str, Any]]


def row_seconds(seconds: float) -> float:
    """Return the seconds of each row of a figure of a video, so that it has up to 12 rows."""
    if seconds <= ONE_ROW:
        return seconds
    return next((length for length in LENGTHS if seconds <= MOST_ROWS * length), seconds / MOST_ROWS)


def colors_of(indices: Iterable[int]) -> dict[int, str]:
    """Return the color of each class: with up to 20 classes the same in all figures of a model.

    Args:
        indices: of classes, the first ones preferred if there are more than 20.
    """
    colors: dict[int, str] = {}
    free = dict(enumerate(PALETTE))
    for index in indices:
        places = ((index + i) % len(PALETTE) for i in range(len(PALETTE)))
        place = next((place for place in places if place in free), None)
        colors[index] = OTHERS if place is None else free.pop(place)
    return colors


@any_script()
def draw_timeline(
    path: Path, heads: Mapping[str, Bouts], *, title: str, background: float | None = None
) -> None:
    """Draw a PNG 1500 pixels wide: a bar for each bout, as high as its probability, and a legend of classes.

    Args:
        heads: bouts by the name of a head, which is empty for a single one; at least one bout.
        background: drawn as a line: windows whose highest probability is below this have no class.
    """
    with matplotlib.rc_context(STYLE):
        figure = timeline_figure(heads, title=title, background=background)
        write_atomically(path, lambda part: figure.savefig(part, format="png", bbox_inches="tight"))


def timeline_figure(heads: Mapping[str, Bouts], *, title: str, background: float | None) -> Figure:
    """Return the figure of `draw_timeline`."""
    every = [bout for bouts in heads.values() for bout in bouts]
    begin, end = min(bout["start"] for bout in every), max(bout["end"] for bout in every)
    end = max(end, begin + SHORTEST)
    length = row_seconds(end - begin)
    starts = [begin + row * length for row in range(max(1, round((end - begin) / length + 0.499)))]
    legends = {head: _legend(bouts) for head, bouts in heads.items()}
    entries = [
        (patch, f"{head} {text}" if head else text)
        for head, (_, parts) in legends.items()
        for patch, text in parts
    ]
    lines = -(-len(entries) // LEGEND_COLUMNS)
    size = (15, ROW * len(starts) * len(heads) + LEGEND_LINE * lines + OTHER_WORDS)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = figure.subplots(len(starts) * len(heads), squeeze=False)[:, 0]
    for number, (head, bouts) in enumerate(heads.items()):
        for row, start in enumerate(starts):
            panel = panels[row * len(heads) + number]
            _draw_row(panel, bouts, legends[head][0], start, start + length)
            if background is not None:
                panel.axhline(background, color="black", linestyle=":", linewidth=1)
            label = str(timedelta(seconds=round(start))) if len(starts) > 1 else ""
            label = "\n".join(filter(None, [label, escape_bytes(head)]))
            panel.set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
    legend = figure.legend(
        handles=[patch for patch, _ in entries],
        labels=["class"] * len(entries),
        loc="outside lower left",
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize="small",
        title="class: seconds, share of the time",
        alignment="left",
    )
    name_entries(legend, [name for _, name in entries])
    panels[-1].set_xlabel("seconds")
    figure.suptitle(
        escape_bytes(f"{title}: bouts; the height of a bar is its mean probability"),
        fontsize=11,
        parse_math=False,
    )
    return figure


def _draw_row(panel: Axes, bouts: Bouts, colors: Mapping[int | None, str], start: float, end: float) -> None:
    """Draw the bouts between two times, pale to the full height and solid up to their probability."""
    shown = [bout for bout in bouts if bout["start"] < end and bout["end"] > start]
    for height, alpha in ((lambda _: 1.0, 0.25), (lambda bout: bout["probability"], 1.0)):
        bars = []
        for bout in shown:
            left, right = max(bout["start"], start), min(bout["end"], end)
            bars.append([(left, 0), (left, height(bout)), (right, height(bout)), (right, 0)])
        fill = [colors[bout["index"]] for bout in shown]
        panel.add_collection(PolyCollection(bars, facecolors=fill, alpha=alpha, linewidths=0))
    panel.set(xlim=(start, end), ylim=(0, 1), yticks=[0, 1], yticklabels=["0", "100 %"])
    panel.tick_params(axis="y", labelsize="x-small")


def _legend(bouts: Bouts) -> tuple[dict[int | None, str], list[tuple[Patch, str]]]:
    """Return the colors of the classes of a head, and the legend's entries, the longest class first."""
    seconds: dict[int | None, float] = {}
    names = {}
    for bout in bouts:
        names[bout["index"]] = bout["label"]
        seconds[bout["index"]] = seconds.get(bout["index"], 0) + bout["end"] - bout["start"]
    whole = max(sum(seconds.values()), SHORTEST)
    ranked = sorted((index for index in seconds if index is not None), key=lambda index: -seconds[index])
    colors: dict[int | None, str] = {None: BACKGROUND, **colors_of(ranked)}
    parts = [(names[index], colors[index], seconds[index]) for index in ranked[: len(PALETTE)]]
    if others := ranked[len(PALETTE) :]:
        parts.append((counted(len(others), "other class"), OTHERS, sum(seconds[index] for index in others)))
    if None in seconds:
        parts.append(("background", BACKGROUND, seconds[None]))
    entries = []
    for name, color, time in parts:
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-15:]}"
        entries.append((Patch(color=color), f"{short}  {time:.1f} s, {time / whole:.1%}"))
    return colors, entries
