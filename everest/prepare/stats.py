"""Statistics of a data set: colors, lengths, class balance, motion of objects and of the camera.

F frames, H height, W width.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from everest.data.footage import FrameTimes, frame_span
from everest.lists.labels import class_imbalance, number_statistics
from everest.lists.reading import SampleList
from everest.methods.alignment import previous_frames
from everest.methods.camera import MOST_CHANGE
from everest.prepare.check import min_median_max
from everest.system.events import Report
from everest.system.types import Floats
from everest.video.file_processes import Failure, collect_in_processes
from everest.video.metadata import clear_video_cache, keep_metadata_in_cache
from everest.video.pixels import IMAGENET
from everest.video.reader import read_frames, video_info
from everest.video.stream import VideoError

SECONDS_PER_VIDEO: Final = 1800  # time limit per video; a video that takes longer is unreadable
PLACES_PER_VIDEO: Final = 8  # heuristic: measured pairs of frames per video
CAMERA_SIDE: Final = 160  # pixels of the longer side of the frames in which camera motion is measured
CLIP_LENGTHS: Final = (8, 16, 32)  # frames of the clips for which the largest stride is reported
SHORT_SHARE: Final = 0.05  # heuristic: share of videos that may be too short for the reported stride
MOTION_DEFINITION: Final = "mean absolute difference of neighboring gray frames, from 0 (still) to 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoMeasures:
    """Measurements of pairs of neighboring frames of one video."""

    mean: Floats  # (3,) of red, green, blue in [0, 1]
    square: Floats  # (3,) mean of the squares
    motion: float  # mean absolute difference of neighboring gray frames, in [0, 1]
    moving: float  # share of pairs between which the camera moves
    unexplained: float  # share of pairs with a large change of another cause: a scene change, a fast object
    frames: int
    seconds: float | None  # None: a folder of images


def measure_video(path: str) -> VideoMeasures | Failure:
    """Measure neighboring frames at some places of a video."""
    try:
        info = video_info(path)
        first_ids = np.unique(np.linspace(0, max(info.num_frames - 2, 0), PLACES_PER_VIDEO).astype(int))
        ids = np.stack([first_ids, np.minimum(first_ids + 1, info.num_frames - 1)], axis=1).flatten()
        frames = read_frames(path, ids.tolist()).numpy()  # (F, H, W, 3), pair after pair
        times = None if info.fps is None else FrameTimes.of(path)
    except VideoError as error:
        return Failure(error.reason)
    finally:
        clear_video_cache()
    # Moments from counts are exact and need no copy in floating point.
    counts = np.stack([np.bincount(frames[..., color].ravel(), minlength=256) for color in range(3)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255
    gray = frames.astype(np.float32).mean(axis=3) / 255  # (F, H, W)
    factor = -(-max(frames.shape[1:3]) // CAMERA_SIDE)
    small = np.stack([np.asarray(Image.fromarray(frame).reduce(factor)) for frame in frames])
    clips = torch.from_numpy(small.reshape(-1, 2, *small.shape[1:])).permute(0, 4, 1, 2, 3)
    camera = previous_frames(clips, lag=1, align="affine", pixels=IMAGENET)
    return VideoMeasures(
        mean=shares @ levels,
        square=shares @ levels**2,
        motion=float(np.abs(gray[1::2] - gray[::2]).mean()),
        moving=camera.moves.float().mean().item(),
        unexplained=(~camera.moves & (camera.change > MOST_CHANGE)).float().mean().item(),
        frames=info.num_frames,
        seconds=None if times is None else times.end,
    )


def compute_stats(
    data: SampleList, *, max_videos: int | None, workers: int, report: Report
) -> dict[str, Any]:
    """Measure videos, all with equal weight; VideoError if no video can be read.

    Args:
        max_videos: limit for the videos of each class, a random but fixed sample; None takes all.
    Returns:
        The document of `everest prepare stats --json`.
    """
    keep_metadata_in_cache()  # segments are looked up in the metadata that the workers read
    samples, by_class = data.samples, data.by_class
    chosen = samples
    if max_videos is not None:
        rng = np.random.default_rng(0)
        picks = [
            (group, rng.permutation(len(group))[:max_videos]) for group in by_class.values() or [samples]
        ]
        chosen = [group[number] for group, numbers in picks for number in sorted(numbers)]
    paths = list(dict.fromkeys(sample.path for sample in chosen))
    measures, skipped = collect_in_processes(
        measure_video, paths, report, workers=workers, timeout=SECONDS_PER_VIDEO
    )
    if not measures:
        raise VideoError(paths[0], f"none of {len(paths)} videos can be read; the first: {skipped[paths[0]]}")
    videos = [measures[path] for path in paths if path in measures]
    mean = np.mean([video.mean for video in videos], axis=0)  # (3,)
    square = np.mean([video.square for video in videos], axis=0)  # (3,)
    lengths: list[int] = []  # lengths of the samples in frames
    for sample in (sample for sample in samples if sample.path in measures):
        lengths.append(0)  # the length of a segment outside its video
        with suppress(VideoError):
            lengths[-1] = frame_span(sample)[1] if sample.is_segment else measures[sample.path].frames
    length = sorted(lengths)[int(SHORT_SHARE * len(lengths) + 1e-9)]  # nearly all videos are this long
    classes = []
    for name, group in by_class.items():
        motions = [measures[sample.path].motion for sample in group if sample.path in measures]
        motion = round(fmean(motions), 5) if motions else None
        classes.append({"class": name, "videos": len(group), "motion": motion})
    return {
        "videos": len(samples),
        "measured": len(videos),
        "skipped": [{"path": path, "reason": reason} for path, reason in sorted(skipped.items())],
        "mean": [round(value, 5) for value in mean.tolist()],
        "std": [round(value, 5) for value in np.sqrt(np.maximum(square - mean**2, 0)).tolist()],
        "seconds": min_median_max([video.seconds for video in videos if video.seconds is not None]),
        "frames": min_median_max([video.frames for video in videos]),
        "motion": round(fmean(video.motion for video in videos), 5),
        "classes": classes,
        "imbalance": round(class_imbalance(list(map(len, by_class.values()))), 3),
        "numbers": number_statistics(sample.labels[0] for sample in samples if sample.labels),
        "camera": {
            "moving": round(fmean(video.moving for video in videos), 4),
            "unexplained": round(fmean(video.unexplained for video in videos), 4),
        },
        "strides": {str(frames): length // frames or None for frames in CLIP_LENGTHS},
        "task": data.task,
    }
