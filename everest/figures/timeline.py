"""The figures of a timeline: the bouts of `everest predict --timeline` as colored bars over time.

A model with one class per window has rows of bars: a long video is drawn in several rows of equal length, one
below the other. Other models have a lane for each class that may be present, and a curve for a number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from everest.annotations.bout import BACKGROUND as BACKGROUND_CLASS
from everest.config.heads import Heads
from everest.figures.drawing import COLORS, plain, png_figure, shorten
from everest.system.text import counted

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
PALE: Final = 0.25  # opacity
SHORTEST: Final = 1e-3  # seconds that are drawn of a video
LONGEST_NAME: Final = 40  # letters
LEGEND_COLUMNS: Final = 3
WIDTH: Final = 15  # inches
ROW: Final = 0.75  # inches
LEGEND_LINE: Final = 0.22
OTHER_WORDS: Final = 1.3  # inches of the title, the axis of seconds and the legend's title
LANES: Final = 20  # our choice: the classes with most seconds; the figure counts the others
LANE: Final = 0.35  # inches
CURVE: Final = 2.0  # inches of the panel of a number
GAP: Final = 0.2  # of a lane, above its bars
FORM: Any = {"points": 11, "dpi": 100}
TITLE: Any = {"fontsize": 11}

Bout = Mapping[str, Any]
Bouts = Sequence[Bout]
Windows = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class ShownClass:
    """A class on a figure."""

    name: str
    color: str
    seconds: dict[str, float]  # of its bouts, by the name of a head

    def text(self, whole: float, head: str | None = None) -> str:
        """Its name with its seconds in each head, or in one, and their share of `whole` seconds."""
        times = self.seconds if head is None else {"": self.seconds[head]}
        amounts = [f"{name} {time:.1f} s, {time / whole:.1%}".lstrip() for name, time in times.items()]
        return plain(f"{shorten(self.name, LONGEST_NAME)}  {'; '.join(amounts)}")


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


def classes_of(heads: Mapping[str, Bouts]) -> dict[int | None, ShownClass]:
    """Return the classes of heads by their indices, those with most seconds first, background last.

    Args:
        heads: bouts by the name of a head; several have the same classes.
    """
    classes: dict[int | None, ShownClass] = {}
    for head, bouts in heads.items():
        for bout in bouts:
            index = _index_of(bout)
            name = BACKGROUND_CLASS if index is None else bout["label"]
            new = ShownClass(name=name, color=BACKGROUND, seconds=dict.fromkeys(heads, 0.0))
            classes.setdefault(index, new).seconds[head] += bout["end"] - bout["start"]
    ranked = sorted(classes.items(), key=lambda item: (item[0] is None, -sum(item[1].seconds.values())))
    for index, color in colors_of(index for index, _ in ranked if index is not None).items():
        classes[index].color = color
    return dict(ranked)


def draw_timeline(
    path: Path,
    heads: Mapping[str, Bouts],
    *,
    title: str,
    background: float | None = None,
    aligned: bool = False,
) -> Figure:
    """Draw a PNG 1500 pixels wide: a bar for each bout, as high as its probability, and a legend of classes.

    Background is pale, and has no bar.

    Args:
        heads: bouts by the name of a head, which is empty for a single one; at least one bout.
        background: drawn as a line: windows whose highest probability is below this have no class.
        aligned: the heads have the same classes, and share their colors and rows of the legend.
    """
    every = [bout for bouts in heads.values() for bout in bouts]
    begin, end = min(bout["start"] for bout in every), max(bout["end"] for bout in every)
    seconds = max(end - begin, SHORTEST)
    length = row_seconds(seconds)
    starts = [begin + row * length for row in range(ceil(seconds / length - 1e-3))]
    groups = [(group, classes_of(group)) for group in _groups(heads, aligned=aligned)]
    classes = {head: of_group for group, of_group in groups for head in group}
    entries = [entry for _, of_group in groups for entry in _legend(of_group.values())]
    columns = 1 if aligned else LEGEND_COLUMNS
    height = ROW * len(starts) * len(heads) + LEGEND_LINE * ceil(len(entries) / columns) + OTHER_WORDS
    with png_figure(path, (WIDTH, height), **FORM) as figure:
        panels = figure.subplots(len(starts) * len(heads), squeeze=False)[:, 0]
        rows = [(start, head) for start in starts for head in heads]
        for panel, (start, head) in zip(panels, rows, strict=True):
            shown = [bout for bout in heads[head] if bout["start"] < start + length and bout["end"] > start]
            _draw_bars(panel, shown, [classes[head][_index_of(bout)].color for bout in shown])
            panel.set(xlim=(start, start + length), ylim=(0, 1), yticks=[0, 1], yticklabels=["0", "100 %"])
            panel.tick_params(axis="y", labelsize="x-small")
            if background is not None:
                panel.axhline(background, color="black", linestyle=":", linewidth=1)
            time = str(timedelta(seconds=round(start))) if len(starts) > 1 else ""
            label = plain("\n".join(filter(None, [time, head])))
            panel.set_ylabel(label, rotation=0, ha="right", va="center")
        panels[-1].set_xlabel("seconds")
        figure.legend(
            handles=[
                Patch(color=entry.color, alpha=PALE if entry.name == BACKGROUND_CLASS else 1)
                for entry in entries
            ],
            labels=[entry.text(seconds) for entry in entries],
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize="small",
            title="class: seconds, share of the time",
            alignment="left",
        )
        figure.suptitle(plain(f"{title}: bouts; the height of a bar is its mean probability"), **TITLE)
    return figure


def draw_task_timeline(
    path: Path,
    windows: Windows,
    bouts: Mapping[str, Bouts],
    heads: Heads,
    *,
    title: str,
    aligned: bool = False,
) -> Figure:
    """Draw a PNG 1500 pixels wide with a panel per head.

    A head of classes has a lane for each class, with a bar for each bout, as high as its probability. A head
    of numbers has a curve through the centers of the windows.

    Args:
        windows: W of `everest predict --timeline --json`, at least one.
        bouts: by the name of a head, which is empty for a single one.
        aligned: the heads have the same classes, and get the same lanes.
    """
    begin, end = windows[0]["start"], max(window["end"] for window in windows)
    end = max(end, begin + SHORTEST)
    of_classes = {
        head.name: [bout for bout in bouts[head.name] if bout["index"] is not None]
        for head in heads
        if head.task != "regression"
    }
    groups = _groups(of_classes, aligned=aligned)
    classes = {head: classes_of(group) for group in groups for head in group}
    heights = [
        LANE * max(min(len(classes[head.name]), LANES), 2) if head.name in classes else CURVE
        for head in heads
    ]
    with png_figure(path, (WIDTH, sum(heights) + 0.5 * len(heads) + 0.8), **FORM) as figure:
        panels = figure.subplots(len(heads), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for panel, head in zip(panels, heads, strict=True):
            words = [head.name]
            if head.name in classes:
                _draw_lanes(panel, head.name, of_classes[head.name], classes[head.name], seconds=end - begin)
                if (others := len(classes[head.name]) - LANES) > 0:
                    words.append(f"not shown: {counted(others, 'other class')}")
            else:
                centers = [(window["start"] + window["end"]) / 2 for window in windows]
                answers = [
                    window["heads"][head.name] if head.name else window["predictions"] for window in windows
                ]
                values = [answer[0]["value"] for answer in answers]
                panel.plot(centers, values, "o-", color=COLORS[0], markersize=4, linewidth=1.5)
                panel.set_ylabel("predicted value")
            panel.set_title(plain(", ".join(filter(None, words))), loc="left", **TITLE)
            panel.grid(alpha=0.3, axis="x" if head.name in classes else "both")
        panels[-1].set(xlabel="seconds", xlim=(begin, end))
        texts = ["the height of a bar is its mean probability"] if classes else []
        texts += ["a point is the center of a window"] if len(classes) < len(heads) else []
        figure.suptitle(plain(f"{title}: {'; '.join(texts)}"), **TITLE)
    return figure


def _groups(heads: Mapping[str, Bouts], *, aligned: bool) -> list[Mapping[str, Bouts]]:
    """The heads that have the same classes: all, or each alone."""
    return [heads] if aligned and heads else [{head: bouts} for head, bouts in heads.items()]


def _legend(classes: Collection[ShownClass]) -> list[ShownClass]:
    """The classes with a color of their own, then all others as one, then the background."""
    named = [shown for shown in classes if shown.color not in (OTHERS, BACKGROUND)]
    if others := [shown for shown in classes if shown.color == OTHERS]:
        sums = {head: sum(shown.seconds[head] for shown in others) for head in others[0].seconds}
        named.append(ShownClass(name=counted(len(others), "other class"), color=OTHERS, seconds=sums))
    return named + [shown for shown in classes if shown.color == BACKGROUND]


def _draw_lanes(
    panel: Axes, head: str, bouts: Bouts, classes: Mapping[int | None, ShownClass], *, seconds: float
) -> None:
    """Draw a lane per class, the first on top."""
    lanes = list(classes.items())[:LANES]
    for lane, (index, shown) in enumerate(lanes):
        of_class = [bout for bout in bouts if _index_of(bout) == index]
        _draw_bars(panel, of_class, shown.color, bottom=-lane - 1, top=1 - GAP)
    names = [shown.text(seconds, head) for _, shown in lanes]
    panel.set_yticks([-lane - 0.5 for lane in range(len(lanes))], names)
    panel.set_ylim(-max(len(lanes), 1), 0)
    if not lanes:
        panel.text(0.5, 0.5, "no class is present", transform=panel.transAxes, ha="center", va="center")


def _draw_bars(
    panel: Axes, bouts: Bouts, colors: str | Sequence[str], *, bottom: float = 0, top: float = 1.0
) -> None:
    """Draw bouts as bars, pale to the full height and solid up to their probability; background is pale."""
    for alpha in (PALE, 1.0):
        bars = []
        for bout in bouts:
            solid = 0.0 if _index_of(bout) is None else bout["probability"]
            upper = bottom + top * (1.0 if alpha == PALE else solid)
            left, right = bout["start"], bout["end"]
            bars.append([(left, bottom), (left, upper), (right, upper), (right, bottom)])
        panel.add_collection(PolyCollection(bars, facecolors=colors, alpha=alpha, linewidths=0))


def _index_of(bout: Bout) -> int | None:
    """The index of the class of a bout; None of background."""
    return None if bout["label"] in (None, BACKGROUND_CLASS) else bout["index"]
