"""Runs a classifier over the views of videos, shared among the processes of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from everest.checkpoints.graph import ExportedClassifier
from everest.config.settings import TrainSettings
from everest.data.clips import SampleKey, VideoClips
from everest.data.loader import batches, choose_workers, on_device
from everest.metrics.predicted import Predictions
from everest.models.classifier import VideoClassifier
from everest.system.compute import HostCopy
from everest.system.events import Report

Classifier = VideoClassifier | ExportedClassifier


class VideoScore(NamedTuple):
    """The result of one video in one process."""

    number: int  # in the list
    video: str
    problem: str | None  # why the video is unreadable
    outputs: NDArray[np.float32]  # (views, outputs); without meaning if there is a problem


@torch.inference_mode()
def evaluate_views(
    model: Classifier, clips: VideoClips, accelerator: Accelerator, *, settings: TrainSettings, report: Report
) -> Predictions:
    """Run a classifier over all views of all videos; returns the predictions in the order of the list.

    Videos are divided into the same passes whatever the number of processes, so the predictions are equal to
    the bit. All processes run the same number of passes, as a sharded model needs; a video that several
    processes ran counts once. Unreadable videos are not replaced: they are in `skipped`. A GPU computes the
    next pass while the host reads the results of the last.
    """
    model.eval()
    size = max(1, 32 // clips.make_views.num_views)  # our choice: 32 clips in a pass, if a video has fewer
    passes = [range(first, min(first + size, len(clips))) for first in range(0, len(clips), size)]
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = [passes[(rank + i * processes) % len(passes)] for i in range(math.ceil(len(passes) / processes))]
    order: list[list[SampleKey]] = [[(0, index) for index in numbers] for numbers in mine]
    workers = min(choose_workers(clips, order, settings.workers), len(order) - 1)
    loaded = batches(clips, order, workers=workers, timeout=settings.data_timeout)
    rows: list[VideoScore] = []

    def read(numbers: range, videos: list[str], problems: list[str | None], outputs: HostCopy) -> None:
        """Keep the results of a pass; `outputs` has (videos, views, outputs)."""
        parts = zip(numbers, videos, problems, outputs.read()["outputs"].numpy(), strict=True)
        rows.extend(VideoScore(*video) for video in parts)

    read_last: Callable[[], None] | None = None
    for done, (numbers, batch) in enumerate(zip(mine, loaded, strict=True), start=1):
        frames: Tensor = on_device(batch, accelerator.device).frames  # (videos, views, C, T, H, W) uint8
        with accelerator.autocast():
            logits = model(frames.flatten(0, 1))  # (videos * views, outputs)
        outputs = {"outputs": model.outputs(logits).unflatten(0, frames.shape[:2])}
        if read_last is not None:
            read_last()
        problems = [failed[0][1] if failed else None for failed in batch.failed]
        read_last = partial(read, numbers, batch.video_ids, problems, HostCopy(outputs))
        videos_done = min(done * size * processes, len(clips))
        report({"event": "video", "done": videos_done, "videos": len(clips)})
    if read_last is not None:
        read_last()
    by_number = {row.number: row for row in gather_object(rows)}
    ordered = [by_number[number] for number in sorted(by_number)]
    readable = [row for row in ordered if row.problem is None]
    samples = [clips.samples[row.number] for row in readable]
    nothing = np.zeros((0, 1, model.num_classes), np.float32)
    return Predictions(
        videos=[row.video for row in readable],
        labels=[sample.labels for sample in samples],
        outputs=np.stack([row.outputs for row in readable]) if readable else nothing,
        skipped=[(row.video, row.problem) for row in ordered if row.problem is not None],
        heads=model.heads,
        groups=[sample.source for sample in samples],
    )
