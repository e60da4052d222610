"""A picture of a data set: thumbnails of each class, with its count of videos and how much moves in them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from everest.prepare.stats import Stats
from everest.system.files import write_atomically

COLUMNS: Final = 6
MOST: Final = 60  # thumbnails: of more classes the first are shown
LEAST: Final = 12  # thumbnails of a set with fewer classes, where it has the videos
LONGEST: Final = 24  # letters of a class name in a line


def draw_contact_sheet(path: Path, stats: Stats) -> None:
    """Write a PNG of up to 60 thumbnails, as many of each class as make about 12."""
    shown = _shown(stats)
    rows = -(-len(shown) // COLUMNS)
    # A name may hold dollars, which are no formula.
    with mpl.rc_context({"font.size": 8, "axes.titlesize": 8, "text.parse_math": False}):
        figure = Figure(figsize=(1.9 * COLUMNS, 1.95 * rows + 0.5), dpi=110, layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for ax in grid:
            ax.axis("off")
        for ax, (name, video) in zip(grid, shown, strict=False):
            ax.imshow(stats.measured[video].thumbnail, interpolation="nearest")
            ax.set_title(f"{_cut(name)}\n{len(stats.by_class[name])} videos, motion {stats.motion(name):.3f}")
        hidden = len(stats.by_class) - len({name for name, _ in shown})
        more = f", {hidden} classes not shown" if hidden else ""
        total = sum(map(len, stats.by_class.values()))
        figure.suptitle(f"{total} videos in {len(stats.by_class)} classes{more}")
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _shown(stats: Stats) -> list[tuple[str, str]]:
    """Class and path of the videos to show."""
    each = max(1, LEAST // len(stats.by_class))
    chosen = []
    for name, samples in stats.by_class.items():
        paths = list(dict.fromkeys(sample.path for sample in samples if sample.path in stats.measured))
        chosen += [(name, path) for path in paths[:: max(1, len(paths) // each)][:each]]
    return chosen[:MOST]


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
