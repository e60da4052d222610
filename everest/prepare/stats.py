"""How far values lie apart.

Numbers about a data set: colours, lengths, balance of the classes, how much moves.

F frames looked at, H height, W width.

A picture of a data set: thumbnails of each class, with its count of videos and how much moves in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from everest.data.samples import Sample
from everest.prepare.processes import Failure, map_apart
from everest.system.events import Report, notice
from everest.system.files import write_atomically
from everest.video.file import clear_video_cache
from everest.video.reader import probe, read_frames
from everest.video.stream import VideoError


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, middle and greatest; None of nothing."""
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


PAIRS: Final = 8  # ours: pairs of neighbouring frames that are looked at, spread over a video
SIDE: Final = 160  # pixels of a thumbnail's longer side

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What some frames of a video tell. Each video counts alike, however large and long."""

    mean: Floats  # (3,) of red, green, blue in [0, 1]
    square: Floats  # (3,) mean of the squares
    motion: float  # mean difference of the grey of neighbouring frames, in [0, 1]
    frames: int
    seconds: float | None  # None: a folder of pictures
    thumbnail: NDArray[np.uint8]  # (H, W, 3) of the middle


def measure(path: str) -> Measured | str:
    """Read pairs of neighbouring frames all over a video; the reason where it cannot be read."""
    try:
        info = probe(path)
        first = np.unique(np.linspace(0, max(info.frames - 2, 0), PAIRS).astype(int))
        ids = np.stack([first, np.minimum(first + 1, info.frames - 1)], axis=1)  # (pairs, 2)
        frames = read_frames(path, ids.flatten().tolist()).numpy()  # (F, H, W, 3)
    except VideoError as error:
        return error.reason
    finally:
        clear_video_cache()
    mean, square = _moments(frames)
    grey = frames.astype(np.float32).mean(axis=3) / 255  # (F, H, W)
    step = -(-max(frames.shape[1:3]) // SIDE)
    return Measured(
        mean=mean,
        square=square,
        motion=float(np.abs(grey[1::2] - grey[::2]).mean()),
        frames=info.frames,
        seconds=info.frames / info.fps if info.fps else None,
        thumbnail=frames[len(frames) // 2, ::step, ::step].copy(),
    )


def _moments(frames: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """(3,) means of values and of squares, from counts: exact, and without a copy in floating point."""
    # (3, 256)
    counts = np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])
    levels = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    return shares @ levels, shares @ levels**2


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Numbers about the videos of a list."""

    measured: Mapping[str, Measured]  # by path
    skipped: Mapping[str, str]  # path to reason
    by_class: Mapping[str, Sequence[Sample]]  # all samples, those that were not looked at as well

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        videos = list(self.measured.values())
        mean = np.mean([video.mean for video in videos], axis=0)
        square = np.mean([video.square for video in videos], axis=0)
        seconds = [video.seconds for video in videos if video.seconds is not None]
        counts = {name: len(samples) for name, samples in self.by_class.items()}
        return {
            "videos": sum(counts.values()),
            "measured": len(videos),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped.items()],
            "mean": [round(value, 5) for value in mean.tolist()],
            "std": [round(value, 5) for value in np.sqrt(square - mean**2).tolist()],
            "seconds": spread(seconds),
            "frames": spread([video.frames for video in videos]),
            "classes": [
                {"class": name, "videos": count, "motion": self.motion(name)}
                for name, count in counts.items()
            ],
            "imbalance": round(max(counts.values()) / min(counts.values()), 3),
        }

    def motion(self, name: str) -> float | None:
        """The mean over the videos of a class, None where none could be read."""
        found = [
            self.measured[sample.path].motion
            for sample in self.by_class[name]
            if sample.path in self.measured
        ]
        return round(fmean(found), 5) if found else None


def take_stats(
    by_class: Mapping[str, Sequence[Sample]],
    *,
    most: int | None,
    seed: int,
    workers: int,
    limit: float,
    report: Report,
) -> Stats:
    """Measure videos, at random `most` of each class; None takes all.

    Raises:
        DataError: none can be read.
    """
    rng = np.random.default_rng(seed)
    paths = list(
        dict.fromkeys(sample.path for name in by_class for sample in _drawn(by_class[name], most, rng))
    )
    measured: dict[str, Measured] = {}
    skipped: dict[str, str] = {}
    for path, result in map_apart(measure, paths, workers=workers, limit=limit):
        if isinstance(result, Measured):
            measured[path] = result
        else:
            skipped[path] = result.reason if isinstance(result, Failure) else result
            report(notice(f"{path}: {skipped[path]}"))
        report({"event": "video", "done": len(measured) + len(skipped), "videos": len(paths)})
    if not measured:
        raise VideoError(paths[0], f"none of {len(paths)} videos can be read; the first: {skipped[paths[0]]}")
    ordered = {path: measured[path] for path in paths if path in measured}
    return Stats(measured=ordered, skipped=dict(sorted(skipped.items())), by_class=by_class)


def _drawn(samples: Sequence[Sample], most: int | None, rng: np.random.Generator) -> list[Sample]:
    if most is None or most >= len(samples):
        return list(samples)
    return [samples[index] for index in np.sort(rng.choice(len(samples), most, replace=False))]


def group_by_class(samples: Sequence[Sample], names: Sequence[str] | None) -> dict[str, list[Sample]]:
    """The samples of each class in the order of the labels; of several labels the first counts."""
    labels = sorted({sample.labels[0] if sample.labels else -1 for sample in samples})
    named = {label: names[label] if names and label >= 0 else str(label) for label in labels}
    groups: dict[str, list[Sample]] = {named[label] if label >= 0 else "all": [] for label in labels}
    for sample in samples:
        groups[named[sample.labels[0]] if sample.labels else "all"].append(sample)
    return groups


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
