"""Times a model from video files to outputs, one video at a time: `everest profile --latency`.

B clips, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from everest.checkpoints.graph import open_exported
from everest.checkpoints.load import ONNX_SUFFIX, find_weights
from everest.data.footage import read_footage
from everest.data.views import EvalViews
from everest.inference.opened_model import OpenedModel
from everest.lists.inputs import find_samples
from everest.lists.sample import Sample
from everest.system.compute import one_thread
from everest.system.events import Notify
from everest.video.metadata import clear_video_cache
from everest.video.reader import read_frames
from everest.video.writer import write_video

WARMUP_VIDEOS: Final = 5  # default: number of videos before timing begins


def time_latency(
    outputs: Callable[[Tensor], object], views: EvalViews, samples: Sequence[Sample], *, on_cpu: bool
) -> dict[str, float | int]:
    """Time one view of each video, one after another, in this process.

    The index of a file is read again each time, as for a new file; the file is in the system's cache.

    Args:
        outputs: computes outputs of clips (B, C, T, H, W) uint8 that the host can read.
        views: one clip and one crop of a video.
        samples: the videos, which are timed in turn.
        on_cpu: whether the network runs on the CPU; while a GPU computes, the thread only waits.
    Returns:
        `p50_ms` and `p95_ms` from a file to its outputs, and the medians of the parts, which need not add up
        to p50: `decode_ms`, `transform_ms` (resize and crop), `network_clock_ms`; `network_ms` of the fastest
        pass, in CPU time of the thread as in `everest export`; the number of `videos` `measured`; `threads`.
    """
    count = min(max(len(samples), 30), 200)  # default limits; fewer videos are repeated
    in_turn, network_timer = cycle(samples), time.thread_time if on_cpu else time.perf_counter
    rows: list[list[float]] = []  # of each micro-batch: when it began, and when each part ended
    alone: list[float] = []  # seconds of the network
    for _ in range(WARMUP_VIDEOS + count):
        clear_video_cache()
        sample = next(in_turn)
        times = [time.perf_counter()]
        clip_ids = views.clip_frame_ids(read_footage(sample, views.fps))
        ids, positions = np.unique(clip_ids, return_inverse=True)
        frames = read_frames(sample.video, ids.tolist(), channels=views.channels)
        times.append(time.perf_counter())
        clips = torch.stack(views.cut_views(views.resize_frames(frames), positions))
        times.append(time.perf_counter())
        started = network_timer()
        outputs(clips)
        alone.append(network_timer() - started)
        rows.append([*times, time.perf_counter()])
    times = 1000 * np.array(rows[WARMUP_VIDEOS:])  # (videos, 4) milliseconds
    total, parts = times[:, -1] - times[:, 0], np.median(np.diff(times), axis=0)
    names = "decode_ms", "transform_ms", "network_clock_ms"
    return {
        "p50_ms": round(float(np.percentile(total, 50)), 3),
        "p95_ms": round(float(np.percentile(total, 95)), 3),
        **{name: round(float(part), 3) for name, part in zip(names, parts, strict=True)},
        "network_ms": round(1000 * min(alone[WARMUP_VIDEOS:]), 3),
        "videos": min(len(samples), count),
        "measured": count,
        "threads": torch.get_num_threads(),
    }


def _limit_threads() -> AbstractContextManager[None]:
    """Limit to one thread, as `everest profile` promises, unless the user sets OMP_NUM_THREADS."""
    return nullcontext() if "OMP_NUM_THREADS" in os.environ else one_thread()


def measure_latency(
    checkpoint: str,
    data: Path | None,
    *,
    cpu: bool,
    notify: Notify,
    time_windows: Callable[[OpenedModel, Sequence[Sample]], dict[str, float] | None] | None = None,
) -> dict[str, Any]:
    """Time a checkpoint or ONNX file on videos; return the document of `everest profile --latency --json`.

    A video is timed on one CPU thread, or on OMP_NUM_THREADS threads; windows on all threads.

    Args:
        data: the videos; None: a rendered video.
        time_windows: times the windows of a classifier over long recordings.
    """
    file, model = find_weights(checkpoint), None
    if file.suffix == ONNX_SUFFIX:
        with _limit_threads():
            exported = open_exported(file)
        precision, device = exported.precision, "cpu"
        views = EvalViews(**vars(exported.clip), clips=1, crops=1)

        def outputs(clips: Tensor) -> object:
            return exported.outputs(exported(clips))

    else:
        model = OpenedModel.open(file, views=(1, 1), cpu=cpu, notify=notify)
        precision, device = model.runtime.precision, str(model.module.device)
        views = model.views
        outputs = model.features if model.module.classes == () else model.outputs
    with TemporaryDirectory() as folder:
        path = data or Path(folder) / "rendered.mp4"
        if data is None:  # a texture that moves for 3 s
            generator = torch.Generator().manual_seed(0)
            blocks = torch.randint(0, 256, (30, 40, 3), generator=generator, dtype=torch.uint8)
            texture = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)  # (H, W, 3): 320 x 240 pixels
            write_video(path, torch.stack([texture.roll(2 * frame, dims=1) for frame in range(96)]), fps=30)
        samples = find_samples([path], root=None)
        with _limit_threads():
            latency = time_latency(outputs, views, samples, on_cpu=device == "cpu")
        windows = None
        if time_windows is not None and model is not None and model.module.classes:
            windows = time_windows(model, samples)
    header = {"checkpoint": str(file), "precision": precision, "device": device}
    return {**header, "data": None if data is None else str(data), "latency": latency, "windows": windows}
