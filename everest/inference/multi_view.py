"""Running a classifier over the views of videos, shared among the processes of a test.

R shares of the tokens that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from everest.config.settings import TrainSettings
from everest.data.dataset import Clip, SampleKey, VideoClips, failures
from everest.data.loader import batches, make_loader, on_device
from everest.inference.accuracy import Scores
from everest.models.classifier import VideoClassifier
from everest.system.events import Report
from everest.video.pixels import normalize

_NOTHING = np.zeros((0, 1, 1), np.float32)  # of no video


class VideoScore(NamedTuple):
    """What one process found out of one video."""

    place: int  # in the list
    video: str
    labels: list[int]  # one a head
    probabilities: list[NDArray[np.float32]]  # R of (views, classes); meaningless with a problem
    problem: str | None  # why it cannot be read


def score_videos(
    model: VideoClassifier,
    clips: VideoClips,
    accelerator: Accelerator,
    *,
    settings: TrainSettings,
    report: Report,
) -> Scores:
    """Run a classifier over all views of all videos, with the share of tokens that it was trained with."""
    return score_shares(model, clips, accelerator, settings=settings, report=report, keeps=[None])[0]


@torch.inference_mode()
def score_shares(
    model: VideoClassifier,
    clips: VideoClips,
    accelerator: Accelerator,
    *,
    settings: TrainSettings,
    report: Report,
    keeps: Sequence[float | None],
) -> list[Scores]:
    """Run a classifier over all views of all videos, once for each share of the tokens.

    A video is decoded once for all shares. One video is one pass on any number of processes, so that the
    scores are the same to the bit. All processes make the same number of passes, as a model that is cut over
    them needs; what is scored twice counts once. Nothing is replaced: what cannot be read is in `skipped`.

    Args:
        keeps: shares of the tokens to encode; None as trained.
    """
    model.eval()
    passes = math.ceil(len(clips) / accelerator.num_processes)
    mine = [(accelerator.process_index + i * accelerator.num_processes) % len(clips) for i in range(passes)]
    order: list[list[SampleKey]] = [[(0, index)] for index in mine]
    loader = make_loader(clips, order, workers=settings.workers, timeout=settings.data_timeout)
    rows: list[VideoScore] = []
    for done, (index, clip) in enumerate(zip(mine, batches(loader), strict=True), start=1):
        scored = _probabilities(model, on_device(clip, accelerator.device), accelerator, keeps)
        failed = failures(clip)
        problem = failed[0][0][1] if failed else None
        rows.append(VideoScore(index, clip.video_id[0], clip.label[0].tolist(), scored, problem))
        report(
            {
                "event": "video",
                "done": min(done * accelerator.num_processes, len(clips)),
                "videos": len(clips),
            }
        )
    gathered = gather_object(rows)
    return [_scores(gathered, model.heads, number) for number in range(len(keeps))]


def _probabilities(
    model: VideoClassifier, clip: Clip, accelerator: Accelerator, keeps: Sequence[float | None]
) -> list[NDArray[np.float32]]:
    frames: Tensor = normalize(clip.frames[0])  # (views, 3, T, H, W)
    found = []
    for keep in keeps:
        with accelerator.autocast():
            logits = model(frames, keep=keep)  # (views, classes)
        found.append(model.probabilities(logits).cpu().numpy())
    return found


def _scores(rows: Iterable[VideoScore], heads: Mapping[str, int], number: int) -> Scores:
    """The scores with the share of this number, in the order of the list."""
    ordered = [row for _, row in sorted({row.place: row for row in rows}.items())]
    read = [row for row in ordered if row.problem is None]
    labels = np.array([row.labels for row in read], dtype=np.int64)
    return Scores(
        videos=[row.video for row in read],
        labels=labels.reshape(len(read), max(len(heads), 1)),
        probabilities=np.stack([row.probabilities[number] for row in read]) if read else _NOTHING,
        skipped=[(row.video, row.problem) for row in ordered if row.problem is not None],
        heads=heads,
    )
