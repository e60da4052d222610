"""The time from a video file to the answer of a model, one video at a time: `everest profile --latency`.

B clips, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from everest.data.footage import footage_of
from everest.data.views import EvalViews
from everest.lists.sample import Sample
from everest.video.file import clear_video_cache
from everest.video.reader import read_frames
from everest.video.writer import write_video

WARMUP: Final = 5  # videos before the first that counts; our choice, as the next two
LEAST: Final = 30  # measured videos: fewer ones are repeated in turns
MOST: Final = 200


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds from a file to its answer. The three parts are medians, so they need not add up to p50."""

    p50_ms: float
    p95_ms: float
    decode_ms: float  # open the file, decode the frames of the view
    transform_ms: float  # resize and crop
    network_ms: float  # normalize, encode, answer
    videos: int  # different ones
    measured: int
    warmup: int
    threads: int


def measure_latency(
    answer: Callable[[Tensor], object], views: EvalViews, samples: Sequence[Sample]
) -> Latency:
    """Measure the wall time of one view of one video after another, in this process.

    The index of a file is read again each time, as of a new file; its bytes are in the system's cache.

    Args:
        answer: maps clips (B, C, T, H, W) uint8 to answers that the host can read.
        views: one clip and one crop of a video.
        samples: the videos, which take turns.
    """
    count = min(max(len(samples), LEAST), MOST)
    rows = []
    for number in range(WARMUP + count):
        sample = samples[(number - WARMUP) % len(samples)]
        clear_video_cache()
        times = [time.perf_counter()]
        footage = footage_of(sample, views.fps)
        needed, positions = np.unique(views.windows(footage), return_inverse=True)
        frames = read_frames(sample.video, needed.tolist(), channels=views.channels)
        times.append(time.perf_counter())
        clips = torch.stack(views.cut(views.resized(frames), positions))
        times.append(time.perf_counter())
        answer(clips)
        times.append(time.perf_counter())
        rows.append([*np.diff(times), times[-1] - times[0]])
    decode, transform, network, total = 1000 * np.array(rows[WARMUP:]).T
    return Latency(
        p50_ms=round(float(np.percentile(total, 50)), 3),
        p95_ms=round(float(np.percentile(total, 95)), 3),
        decode_ms=round(float(np.median(decode)), 3),
        transform_ms=round(float(np.median(transform)), 3),
        network_ms=round(float(np.median(network)), 3),
        videos=min(len(samples), count),
        measured=count,
        warmup=WARMUP,
        threads=torch.get_num_threads(),
    )


def render_video(path: Path) -> None:
    """Write a video of 96 frames, 3 s, and 320 x 240 pixels in which a texture moves."""
    blocks = torch.randint(0, 256, (30, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)  # (H, W, 3)
    write_video(path, torch.stack([picture.roll(2 * frame, dims=1) for frame in range(96)]), fps=30)
