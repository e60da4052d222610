"""Statistics of a data set: colors, lengths, class balance, motion.

F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everest.config.heads import MULTI_LABEL, Task
from everest.data.footage import Timeline
from everest.lists.label_facts import are_equal, classes_of_a_video, imbalance, number_facts
from everest.lists.labels import indices
from everest.lists.sample import Sample
from everest.prepare.camera_stats import APART, CameraShares, camera_shares, mean_shares
from everest.prepare.examine import min_median_max, num_frames
from everest.system.events import Report, notice
from everest.video.file import clear_video_cache
from everest.video.file_processes import Failure, map_apart
from everest.video.reader import luma, probe, read_frames
from everest.video.stream import VideoError

PLACES: Final = 8  # our choice: where a video is measured
SIDE: Final = 160  # pixels of a thumbnail's longer side
CLIPS: Final = (8, 16, 32)  # frames of the clips for which the largest stride is reported
TOO_SHORT: Final = 0.05  # our choice: share of the videos that may be shorter than a clip of this stride
MOTION: Final = "mean absolute difference of neighboring gray frames, from 0 (still) to 1"

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Measurements of some frames of a video. All videos have the same weight, however large and long."""

    mean: Floats  # (3,) of red, green, blue in [0, 1]
    square: Floats  # (3,) mean of the squares
    luma: Floats  # (2,) mean, and mean of the squares, of luma (ITU-R 601) in [0, 1]
    motion: float  # mean absolute difference of neighboring gray frames, in [0, 1]
    camera: CameraShares
    frames: int
    seconds: float | None  # None: a folder of images
    thumbnail: NDArray[np.uint8]  # (H, W, 3) of the middle


def measure(path: str) -> Measured | Failure:
    """Measure neighboring frames at some places of a video, and the camera between frames farther apart."""
    try:
        info = probe(path)
        near, far = _pairs(info.frames, 1), _pairs(info.frames, APART)
        near = near if len(near) else np.zeros((1, 2), int)  # of a single frame
        ids = np.concatenate([near, far]).flatten()
        read = read_frames(path, ids.tolist()).numpy()  # (2 * pairs, H, W, 3)
        seconds = None if info.fps is None else Timeline.of(path).end
    except VideoError as error:
        return Failure(error.reason)
    finally:
        clear_video_cache()
    frames = read[: near.size]  # (F, H, W, 3)
    mean, square = _moments(frames)
    of_luma = np.concatenate(_moments(np.stack([luma(frame) for frame in frames])))  # (2,)
    gray = frames.astype(np.float32).mean(axis=3) / 255  # (F, H, W)
    step = -(-max(frames.shape[1:3]) // SIDE)
    small = np.stack([np.asarray(Image.fromarray(frame).reduce(step)) for frame in read])
    pairs = small.reshape(-1, 2, *small.shape[1:])
    return Measured(
        mean=mean,
        square=square,
        luma=of_luma,
        motion=float(np.abs(gray[1::2] - gray[::2]).mean()),
        camera=CameraShares(
            *camera_shares(pairs[: len(near)]),
            *(camera_shares(pairs[len(near) :]) if len(far) else (None, None)),
        ),
        frames=info.frames,
        seconds=seconds,
        thumbnail=small[near.size // 2],
    )


def _pairs(frames: int, apart: int) -> NDArray[np.int64]:
    """Frames (M, 2) that are `apart`, at PLACES of a video; of a shorter one none."""
    if frames <= apart:
        return np.empty((0, 2), int)
    first = np.unique(np.linspace(0, frames - 1 - apart, PLACES).astype(int))
    return np.stack([first, first + apart], axis=1)


def _moments(frames: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """The mean (C,) and the mean of the squares (C,) of each channel of (F, H, W, C), in [0, 1].

    Moments from counts are exact and need no copy in floating point.
    """
    channels = range(frames.shape[-1])
    counts = np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in channels])  # (C, 256)
    shares, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    return shares @ levels, shares @ levels**2


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Statistics of the videos of a list."""

    samples: Sequence[Sample]  # all, also those that were not measured
    measured: Mapping[str, Measured]  # by path
    skipped: Mapping[str, str]  # path to reason
    by_class: Mapping[str, Sequence[Sample]]  # a sample of several classes is in each; `all` without classes
    task: Task = "single-label"  # of the first label
    fps: float | None = None  # that lengths count; None: of each file
    channels: int = 3  # of mean and std; 1: luma

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        videos = list(self.measured.values())
        gray = self.channels == 1
        mean = np.mean([video.luma[:1] if gray else video.mean for video in videos], axis=0)  # (C,)
        square = np.mean([video.luma[1:] if gray else video.square for video in videos], axis=0)  # (C,)
        seconds = [video.seconds for video in videos if video.seconds is not None]
        counts = {name: len(samples) for name, samples in self.by_class.items()}
        labels = [sample.labels[0] for sample in self.samples if sample.labels]
        return {
            "videos": len(self.samples),
            "measured": len(videos),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped.items()],
            "mean": [round(value, 5) for value in mean.tolist()],
            "std": [round(value, 5) for value in np.sqrt(square - mean**2).tolist()],
            "seconds": min_median_max(seconds),
            "frames": min_median_max([video.frames for video in videos]),
            "classes": [
                {"class": name, "videos": count, "motion": self.motion(name)}
                for name, count in counts.items()
            ],
            "camera": mean_shares([video.camera for video in videos]),
            "fps": self.fps,
            "strides": {str(frames): largest_stride(self.lengths, frames) for frames in CLIPS},
            "task": self.task,
            "has_classes": self.has_classes,
            "imbalance": round(imbalance(counts.values()), 3),
            "classes_of_a_video": classes_of_a_video(labels),
            "numbers": number_facts(labels),
            "equal_numbers": are_equal(labels),
        }

    @property
    def has_classes(self) -> bool:
        """Whether a video has a class; without, `by_class` has all videos as `all`."""
        return any(indices(sample.labels[0]) for sample in self.samples if sample.labels)

    @property
    def lengths(self) -> list[int]:
        """Frames of each sample whose video was measured, as clips count them."""
        pairs = [
            (sample, self.measured[sample.path]) for sample in self.samples if sample.path in self.measured
        ]
        return [max(num_frames(sample, video.frames, video.seconds, self.fps), 0) for sample, video in pairs]

    def motion(self, name: str) -> float | None:
        """The mean motion of the videos of a class; None if none could be read."""
        paths = [sample.path for sample in self.by_class[name] if sample.path in self.measured]
        return round(fmean(self.measured[path].motion for path in paths), 5) if paths else None


def take_stats(
    samples: Sequence[Sample],
    names: Sequence[str] | None,
    *,
    most: int | None,
    seed: int,
    workers: int,
    limit: float,
    report: Report,
    fps: float | None = None,
    channels: int = 3,
    task: Task = "single-label",
) -> Stats:
    """Measure videos.

    Args:
        samples: each counts for the class, or for each of the classes, of its first label.
        names: of the classes in the order of the labels; None names them by their labels.
        most: videos of each class, drawn at random; None takes all.
        limit: seconds for a video.
        fps: frames per second that lengths count; None: of each file.
        channels: of the mean and std; 1: luma.
        task: of the first label.
    """
    by_class = _by_class(samples, names)
    classless = [sample for sample in samples if task == MULTI_LABEL and sample.labels == ((),)]
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for of_class in (*by_class.values(), classless):
        numbers = range(len(of_class))
        if most is not None and most < len(of_class):
            numbers = np.sort(rng.choice(len(of_class), most, replace=False))
        chosen += [of_class[number].path for number in numbers]
    paths = list(dict.fromkeys(chosen))
    measured: dict[str, Measured] = {}
    skipped: dict[str, str] = {}
    for path, result in map_apart(measure, paths, workers=workers, limit=limit):
        if isinstance(result, Measured):
            measured[path] = result
        else:
            skipped[path] = result.reason
            report(notice(f"{path}: {result.reason}"))
        report({"event": "video", "done": len(measured) + len(skipped), "videos": len(paths)})
    if not measured:
        raise VideoError(paths[0], f"none of {len(paths)} videos can be read; the first: {skipped[paths[0]]}")
    ordered = {path: measured[path] for path in paths if path in measured}
    return Stats(
        samples=samples,
        measured=ordered,
        skipped=dict(sorted(skipped.items())),
        by_class=by_class,
        task=task,
        fps=fps,
        channels=channels,
    )


def _by_class(samples: Sequence[Sample], names: Sequence[str] | None) -> dict[str, list[Sample]]:
    """The samples of each class in the order of the labels; all of them if they have no classes."""
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        for index in indices(sample.labels[0]) if sample.labels else ():
            by_class.setdefault(index, []).append(sample)
    named = {names[index] if names else str(index): by_class[index] for index in sorted(by_class)}
    return named or {"all": list(samples)}


def largest_stride(lengths: Sequence[int], frames: int) -> int | None:
    """The largest stride at which nearly all videos fill a clip of `frames`; None if even 1 is too large."""
    return sorted(lengths)[int(TOO_SHORT * len(lengths) + 1e-9)] // frames or None
