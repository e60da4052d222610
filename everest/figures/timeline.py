"""The figures of a timeline: the bouts of `everest predict --timeline` as colored bars over time.

A model with one class per window has rows of bars: a long video is drawn in several rows of equal length, one
below the other. Other models have a lane for each class that may be present, and a curve for a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from everest.annotations.bout import BACKGROUND as BACKGROUND_CLASS
from everest.config.heads import Heads
from everest.figures.curves import COLORS
from everest.figures.drawing import any_script, name_entries, png_figure
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
PALE: Final = 0.25  # opacity
SHORTEST: Final = 1e-3  # seconds that are drawn of a video
LONGEST_NAME: Final = 40  # letters
LEGEND_COLUMNS: Final = 3
ROW: Final = 0.75  # inches
LEGEND_LINE: Final = 0.22
OTHER_WORDS: Final = 1.3  # inches of the title, the axis of seconds and the legend's title
LANES: Final = 20  # our choice: the classes with most seconds; the figure counts the others
LANE: Final = 0.35  # inches
CURVE: Final = 2.0  # inches of the panel of a number
GAP: Final = 0.2  # of a lane, above its bars
FORM: Any = {"points": 11, "dpi": 100}

Bouts = Sequence[Mapping[str, Any]]
Windows = Sequence[Mapping[str, Any]]


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
    end = max(end, begin + SHORTEST)
    length = row_seconds(end - begin)
    starts = [begin + row * length for row in range(max(1, round((end - begin) / length + 0.499)))]
    groups = [heads] if aligned else [{head: bouts} for head, bouts in heads.items()]
    legends = [_legend(group, end - begin) for group in groups]
    colors = {head: of for group, (of, _) in zip(groups, legends, strict=True) for head in group}
    entries = [entry for _, of_group in legends for entry in of_group]
    columns = 1 if aligned else LEGEND_COLUMNS
    lines = -(-len(entries) // columns)
    height = ROW * len(starts) * len(heads) + LEGEND_LINE * lines + OTHER_WORDS
    with png_figure(path, (15, height), **FORM) as figure:
        panels = figure.subplots(len(starts) * len(heads), squeeze=False)[:, 0]
        for number, (head, bouts) in enumerate(heads.items()):
            for row, start in enumerate(starts):
                panel = panels[row * len(heads) + number]
                end_of_row = start + length
                shown = [
                    {**bout, "start": max(bout["start"], start), "end": min(bout["end"], end_of_row)}
                    for bout in bouts
                    if bout["start"] < end_of_row and bout["end"] > start
                ]
                _draw_bars(panel, shown, [colors[head][_class_of(bout)] for bout in shown])
                panel.set(xlim=(start, end_of_row), ylim=(0, 1), yticks=[0, 1], yticklabels=["0", "100 %"])
                panel.tick_params(axis="y", labelsize="x-small")
                if background is not None:
                    panel.axhline(background, color="black", linestyle=":", linewidth=1)
                label = str(timedelta(seconds=round(start))) if len(starts) > 1 else ""
                label = "\n".join(filter(None, [label, escape_bytes(head)]))
                panel.set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
        legend = figure.legend(
            handles=[patch for patch, _ in entries],
            labels=["class"] * len(entries),
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize="small",
            title="class: seconds, share of the time",
            alignment="left",
        )
        name_entries(legend, [name for _, name in entries])
        panels[-1].set_xlabel("seconds")
        what = escape_bytes(f"{title}: bouts; the height of a bar is its mean probability")
        figure.suptitle(what, fontsize=11, parse_math=False)
    return figure


@any_script()
def draw_task_timeline(
    path: Path,
    windows: Windows,
    bouts: Mapping[str, Bouts],
    heads: Heads,
    *,
    title: str,
    aligned: bool = False,
) -> None:
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
    classes = {head.name: _by_class(bouts[head.name]) for head in heads if head.task != "regression"}
    if aligned:
        ranked = _by_class([bout for of_head in bouts.values() for bout in of_head])
        labels = {index: of_class[0]["label"] for index, of_class in ranked.items()}
        classes = {
            name: {index: of_head.get(index, ()) for index in ranked} for name, of_head in classes.items()
        }
    else:
        labels = {i: of_class[0]["label"] for of_head in classes.values() for i, of_class in of_head.items()}
    lanes = {name: dict(list(of_head.items())[:LANES]) for name, of_head in classes.items()}
    heights = [LANE * max(len(lanes[head.name]), 2) if head.name in lanes else CURVE for head in heads]
    with png_figure(path, (15, sum(heights) + 0.5 * len(heads) + 0.8), **FORM) as figure:
        panels = figure.subplots(len(heads), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for head, panel in zip(heads, panels, strict=True):
            others = ""
            if head.name in lanes:
                _draw_lanes(panel, lanes[head.name], labels, seconds=end - begin)
                if num_others := len(classes[head.name]) - len(lanes[head.name]):
                    others = f"not shown: {counted(num_others, 'other class')}"
            else:
                centers = [(window["start"] + window["end"]) / 2 for window in windows]
                name = head.name
                answers = [window["heads"][name] if name else window["predictions"] for window in windows]
                values = [answer[0]["value"] for answer in answers]
                panel.plot(centers, values, "o-", color=COLORS[0], markersize=4, linewidth=1.5)
                panel.set_ylabel("predicted value")
            words = ", ".join(filter(None, [escape_bytes(head.name), others]))
            panel.set_title(words, fontsize=11, loc="left", parse_math=False)
            panel.grid(alpha=0.3, axis="x" if head.name in lanes else "both")
        panels[-1].set(xlabel="seconds", xlim=(begin, end))
        texts = ["the height of a bar is its mean probability"] if lanes else []
        if len(lanes) < len(heads):
            texts.append("a point is the center of a window")
        figure.suptitle(escape_bytes(f"{title}: {'; '.join(texts)}"), fontsize=11, parse_math=False)


def _draw_lanes(
    panel: Axes, lanes: Mapping[int, Bouts], labels: Mapping[int, str], *, seconds: float
) -> None:
    """Draw a lane per class, the first on top."""
    colors, names = colors_of(lanes), []
    for lane, (index, bouts) in enumerate(lanes.items()):
        _draw_bars(panel, bouts, colors[index], bottom=-lane - 1, top=1 - GAP)
        names.append(escape_bytes(f"{_shortened(labels[index])}  {_amount(_seconds(bouts), seconds)}"))
    count = len(lanes)
    panel.set_yticks([-lane - 0.5 for lane in range(count)], names, parse_math=False)
    panel.set_ylim(-max(count, 1), 0)
    if not count:
        panel.text(0.5, 0.5, "no class is present", transform=panel.transAxes, ha="center", va="center")


def _draw_bars(
    panel: Axes, bouts: Bouts, colors: str | Sequence[str], *, bottom: float = 0, top: float = 1.0
) -> None:
    """Draw bouts as bars, pale to the full height and solid up to their probability; background is pale."""
    solid = [0.0 if _class_of(bout) is None else bout["probability"] for bout in bouts]
    for heights, alpha in (([1.0] * len(bouts), PALE), (solid, 1.0)):
        bars = []
        for bout, height in zip(bouts, heights, strict=True):
            left, right, upper = bout["start"], bout["end"], bottom + top * height
            bars.append([(left, bottom), (left, upper), (right, upper), (right, bottom)])
        panel.add_collection(PolyCollection(bars, facecolors=colors, alpha=alpha, linewidths=0))


def _by_class(bouts: Bouts) -> dict[int, Bouts]:
    """Return the bouts of each class, the class with most seconds first, without the background."""
    by_class: dict[int, list[Mapping[str, Any]]] = {}
    for bout in bouts:
        if bout["index"] is not None:
            by_class.setdefault(bout["index"], []).append(bout)
    return dict(sorted(by_class.items(), key=lambda pair: -_seconds(pair[1])))


def _class_of(bout: Mapping[str, Any]) -> int | None:
    """The index of the class of a bout; None of background."""
    return None if bout["label"] in (None, BACKGROUND_CLASS) else bout["index"]


def _legend(
    heads: Mapping[str, Bouts], whole: float
) -> tuple[dict[int | None, str], list[tuple[Patch, str]]]:
    """Return the colors of the classes of heads, and the legend's entries, the longest class first.

    Args:
        heads: bouts by the name of a head; several have the same classes, which have one entry each.
        whole: the seconds that all heads show.
    """
    names: dict[int | None, str] = {}
    seconds: dict[int | None, dict[str, float]] = {}  # of each class, by head
    for head, bouts in heads.items():
        for bout in bouts:
            index = _class_of(bout)
            names[index] = BACKGROUND_CLASS if index is None else bout["label"]
            of_class = seconds.setdefault(index, dict.fromkeys(heads, 0.0))
            of_class[head] += bout["end"] - bout["start"]
    ranked = sorted(
        (index for index in seconds if index is not None), key=lambda index: -sum(seconds[index].values())
    )
    colors: dict[int | None, str] = {None: BACKGROUND, **colors_of(ranked)}
    parts = [(names[index], colors[index], seconds[index]) for index in ranked[: len(PALETTE)]]
    if others := ranked[len(PALETTE) :]:
        sums = {head: sum(seconds[index][head] for index in others) for head in heads}
        parts.append((counted(len(others), "other class"), OTHERS, sums))
    if None in seconds:
        parts.append((BACKGROUND_CLASS, BACKGROUND, seconds[None]))
    entries = []
    for name, color, by_head in parts:
        times = [f"{head} {_amount(time, whole)}".lstrip() for head, time in by_head.items()]
        patch = Patch(color=color, alpha=PALE if name == BACKGROUND_CLASS else 1)
        entries.append((patch, f"{_shortened(name)}  {'; '.join(times)}"))
    return colors, entries


def _seconds(bouts: Bouts) -> float:
    return sum(bout["end"] - bout["start"] for bout in bouts)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-15:]}"


def _amount(seconds: float, whole: float) -> str:
    return f"{seconds:.1f} s, {seconds / whole:.1%}"
