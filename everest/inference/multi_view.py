"""Runs a classifier over the views of videos, shared among the processes of an evaluation.

R keep ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from everest.config.settings import TrainSettings
from everest.data.dataset import SampleKey, VideoClips, failures
from everest.data.loader import batches, make_loader, on_device
from everest.inference.accuracy import Predictions
from everest.models.classifier import VideoClassifier
from everest.system.events import Report
from everest.video.pixels import normalize


class VideoScore(NamedTuple):
    """The result of one video in one process."""

    number: int  # in the list
    video: str
    labels: list[int]  # one per head
    probabilities: list[NDArray[np.float32]]  # R of (views, classes); without meaning if there is a problem
    problem: str | None  # why the video is unreadable


@torch.inference_mode()
def evaluate_views(
    model: VideoClassifier,
    clips: VideoClips,
    accelerator: Accelerator,
    *,
    settings: TrainSettings,
    report: Report,
    keeps: Sequence[float | None] = (None,),
) -> list[Predictions]:
    """Run a classifier over all views of all videos, once for each keep ratio.

    A video is decoded once for all ratios. One video is one forward pass on any number of processes, so the
    predictions are the same to the bit. All processes run the same number of passes, as a sharded model
    needs; a video that several processes ran counts once. Unreadable videos are not replaced: they are in
    `skipped`.

    Args:
        keeps: ratios of the tokens to encode; None: as trained.
    Returns:
        The predictions for each of `keeps`, with the videos in the order of the list.
    """
    model.eval()
    passes = math.ceil(len(clips) / accelerator.num_processes)
    mine = [(accelerator.process_index + i * accelerator.num_processes) % len(clips) for i in range(passes)]
    order: list[list[SampleKey]] = [[(0, index)] for index in mine]
    loader = make_loader(clips, order, workers=settings.num_workers, timeout=settings.data_timeout)
    rows: list[VideoScore] = []
    for done, (index, clip) in enumerate(zip(mine, batches(loader), strict=True), start=1):
        frames: Tensor = normalize(on_device(clip, accelerator.device).frames[0])  # (views, 3, T, H, W)
        probabilities = []
        for keep in keeps:
            with accelerator.autocast():
                logits = model(frames, keep=keep)  # (views, classes)
            probabilities.append(model.probabilities(logits).cpu().numpy())
        failed = failures(clip)
        problem = failed[0][0][1] if failed else None
        rows.append(VideoScore(index, clip.video_id[0], clip.label[0].tolist(), probabilities, problem))
        videos_done = min(done * accelerator.num_processes, len(clips))
        report({"event": "video", "done": videos_done, "videos": len(clips)})
    by_number = {row.number: row for row in gather_object(rows)}
    ordered = [by_number[number] for number in sorted(by_number)]
    readable = [row for row in ordered if row.problem is None]
    labels = np.array([row.labels for row in readable], dtype=np.int64)
    nothing = np.zeros((0, 1, 1), np.float32)
    return [
        Predictions(
            videos=[row.video for row in readable],
            labels=labels.reshape(len(readable), max(len(model.heads), 1)),
            probabilities=np.stack([row.probabilities[i] for row in readable]) if readable else nothing,
            skipped=[(row.video, row.problem) for row in ordered if row.problem is not None],
            heads=model.heads,
        )
        for i in range(len(keeps))
    ]
