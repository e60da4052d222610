"""An image of thumbnails of a data set, by class or by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from everest.figures.drawing import plain, png_figure
from everest.prepare.stats import MOTION, Stats
from everest.system.text import counted

MOST: Final = 60  # thumbnails; if there are more classes, the first are shown
LEAST: Final = 12  # thumbnails of a set with fewer classes, if it has the videos
COLUMNS: Final = 6
WIDEST: Final = 0.96  # of a column, which a title may fill
SMALLEST: Final = 2  # points
LONGEST: Final = 24  # characters of a name in a title

Titled = tuple[str, str]  # a video and its title


def draw_contact_sheet(path: Path, stats: Stats) -> None:
    """Write a PNG of up to 60 thumbnails: the same number for each class, about 12 in total.

    Of numbers, it shows 12 videos from the lowest to the highest number.
    """
    heading, shown = _by_class(stats) if stats.has_classes else _one_by_one(stats)
    images = [(stats.measured[video].thumbnail, title) for video, title in shown]
    draw_thumbnails(path, f"{heading}\nmotion: {MOTION}", images)


def _by_class(stats: Stats) -> tuple[str, list[Titled]]:
    """The heading, and thumbnails of each class with its name, its videos and their motion."""
    videos = {
        name: list(dict.fromkeys(sample.path for sample in samples if sample.path in stats.measured))
        for name, samples in stats.by_class.items()
    }
    titles = {
        name: f"{cut(name)}\n{counted(len(samples), 'video')}, motion {stats.motion(name):.3f}"
        for name, samples in stats.by_class.items()
        if videos[name]
    }
    chosen = choose_videos(videos, each=max(1, LEAST // len(videos)))
    shown = [(name, video) for name, of_class in chosen.items() for video in of_class][:MOST]
    hidden = len(videos) - len({name for name, _ in shown})
    more = f", {counted(hidden, 'class')} not shown" if hidden else ""
    heading = f"{counted(len(stats.samples), 'video')} in {counted(len(videos), 'class')}{more}"
    return heading, [(video, titles[name]) for name, video in shown]


def choose_videos(videos: Mapping[str, Sequence[str]], *, each: int) -> dict[str, list[str]]:
    """Choose up to `each` videos of every class, spread over its list.

    A video of several classes is shown for one of them, unless a class has no other video.
    """
    candidates = {}
    for name, of_class in videos.items():
        spread = list(of_class[:: max(1, len(of_class) // each)][:each])
        candidates[name] = [*spread, *(video for video in of_class if video not in set(spread))]
    chosen: dict[str, list[str]] = {name: [] for name in videos}
    used: set[str] = set()
    rarest_first = sorted(videos, key=lambda name: len(videos[name]))
    for _ in range(each):  # in turns, so that no class takes the videos of another
        for name in rarest_first:
            video = next((video for video in candidates[name] if video not in used), None)
            if video is None and not chosen[name]:
                video = next(iter(candidates[name]), None)
            if video is not None:
                chosen[name].append(video)
                used.add(video)
    order = {name: {video: place for place, video in enumerate(videos[name])} for name in videos}
    return {name: sorted(of_class, key=order[name].__getitem__) for name, of_class in chosen.items()}


def _one_by_one(stats: Stats) -> tuple[str, list[Titled]]:
    """The heading, and thumbnails with their numbers, or with the names of the files, and their motion."""
    heading = counted(len(stats.samples), "video")
    numbers: dict[str, float] = {}  # of each video the first: segments have the same thumbnail
    for sample in stats.samples:
        if sample.path in stats.measured and sample.labels and isinstance(sample.labels[0], float):
            numbers.setdefault(sample.path, sample.labels[0])
    if not numbers:
        videos = list(stats.measured)
        shown = videos[:: max(1, len(videos) // LEAST)][:LEAST]
        return heading, [(video, _titled(cut(Path(video).name), video, stats)) for video in shown]
    low, high = min(numbers.values()), max(numbers.values())
    shown = spread_over_range(numbers, LEAST)
    heading += f", labels from {low:g} to {high:g}"
    return heading, [(video, _titled(f"{numbers[video]:g}", video, stats)) for video in shown]


def spread_over_range(numbers: Mapping[str, float], count: int) -> list[str]:
    """Choose up to `count` names whose numbers are spread over their range, ascending by number."""
    left = set(numbers)
    chosen: list[str] = []
    for target in np.linspace(min(numbers.values()), max(numbers.values()), count).tolist():
        name = min(left, key=lambda name: (abs(numbers[name] - target), name), default=None)
        if name is not None:
            left.remove(name)
            chosen.append(name)
    return sorted(chosen, key=lambda name: (numbers[name], name))


def _titled(first: str, video: str, stats: Stats) -> str:
    return f"{first}\nmotion {stats.measured[video].motion:.3f}"


def draw_thumbnails(path: Path, heading: str, shown: Sequence[tuple[NDArray[np.uint8], str]]) -> Figure:
    """Write a PNG of thumbnails, `COLUMNS` in a row, under a heading.

    Args:
        shown: images (H, W, 3), each with its title.
    """
    rows = -(-len(shown) // COLUMNS)
    size = (1.9 * COLUMNS, 2.1 * rows + 0.5)
    with png_figure(path, size, points=8, dpi=110, tight=False) as figure:
        widest = WIDEST * figure.get_figwidth() * figure.dpi / COLUMNS
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for ax in grid:
            ax.axis("off")
        for ax, (image, title) in zip(grid, shown, strict=False):
            ax.imshow(image, interpolation="nearest")
            text = ax.set_title(plain(title), fontsize=8)
            # Step by step: the widths of small letters are rounded, and not proportional to their size.
            while text.get_window_extent().width > widest and text.get_fontsize() > SMALLEST:
                text.set_fontsize(0.95 * text.get_fontsize())
        figure.suptitle(plain(heading))
    return figure


def cut(name: str) -> str:
    """The first `LONGEST` characters of a name."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
