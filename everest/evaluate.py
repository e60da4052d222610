"""Multi-view testing: every video in clips x crops views, its class from the mean of their probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from everest.bad_videos import refuse_too_many_skipped
from everest.build import ModelSpec
from everest.checkpoint import Weights, load_tensors
from everest.clips import Classes, test_clips
from everest.config.settings import Recipe, TrainSettings
from everest.data.datasets import Clip, SampleKey, VideoClips, failures
from everest.data.loading import batches, make_loader
from everest.devices import on_device
from everest.errors import CheckpointError
from everest.files import check_writable
from everest.load import open_weights, require_kind
from everest.models.classifier import VideoClassifier
from everest.pixels import normalise
from everest.reports import Report, notice
from everest.scores import Scores, accuracies, write_predictions

_NOTHING = np.zeros((0, 1, 1), np.float32)  # of no video


class Row(NamedTuple):
    """What one process found out of one video."""

    place: int  # in the list
    video: str
    labels: list[int]  # one a head
    probabilities: NDArray[np.float32]  # (views, classes); meaningless with a problem
    problem: str | None  # why it cannot be read


def evaluate(
    recipe: Recipe,
    weights_file: Path,
    accelerator: Accelerator,
    *,
    report: Report,
    predictions: Path | None = None,
) -> dict[str, Any]:
    """Test a classifier on the recipe's `data.test`; the accuracies with all that tells how they came about.

    The clip and the token selection are those of the recipe, which is the run's own unless another is given.

    Args:
        predictions: a CSV file to write, one row a video.
    Raises:
        CheckpointError: no classifier, or one that does not go with the recipe.
        DataError: more videos than `data.max_bad` allows could not be read.
    """
    began = time.monotonic()
    if predictions is not None and accelerator.is_main_process:
        check_writable(predictions)  # before hours of testing, not after
    weights = open_weights(weights_file)
    model = _classifier_for(recipe, weights, source=weights_file)
    classes = Classes(count=model.num_classes, names=weights.classes, heads=model.heads)
    clips = test_clips(recipe, classes)
    model.to(accelerator.device)
    scores = score_videos(model, clips, accelerator, settings=recipe.train, report=report)
    for path, reason in scores.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(scores.skipped, read=len(scores.videos), max_bad=recipe.data.max_bad)
    if predictions is not None and accelerator.is_main_process:
        write_predictions(predictions, scores, classes)
    return {
        **accuracies(scores),
        "videos": len(scores.videos),
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(scores.skipped),
        "seconds": round(time.monotonic() - began, 2),
        "checkpoint": str(weights_file),
        "recipe": recipe.name,
    }


def _classifier_for(recipe: Recipe, weights: Weights, *, source: Path) -> VideoClassifier:
    """The classifier of `weights`, for the recipe's clips and token selection."""
    require_kind(weights, "classifier", source=source)
    spec = ModelSpec.of(weights.settings, source=source)
    trained, asked = spec.model.tubelet, recipe.model.tubelet
    if trained != asked:
        raise CheckpointError(f"{source}: trained with tubelets of {trained}, the recipe has {asked}")
    asked_heads = recipe.data.heads
    if asked_heads is not None and list(asked_heads.items()) != list((spec.heads or {}).items()):
        raise CheckpointError(
            f"{source}: its heads are {_told(spec.heads)}, the recipe has {_told(asked_heads)}"
        )
    if asked_heads is None and spec.heads is None and recipe.data.num_classes not in (None, spec.num_classes):
        raise CheckpointError(
            f"{source}: tells {spec.num_classes} classes apart, the recipe has {recipe.data.num_classes}"
        )
    fitted = replace(
        spec,
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        selection=recipe.finetune.selection,
    )
    model = fitted.build()
    assert isinstance(model, VideoClassifier)
    load_tensors(model, weights.tensors, source=str(source))
    return model


def _told(heads: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name} ({count})" for name, count in heads.items()) if heads else "one without a name"


@torch.inference_mode()
def score_videos(
    model: VideoClassifier,
    clips: VideoClips,
    accelerator: Accelerator,
    *,
    settings: TrainSettings,
    report: Report,
    keep: float | None = None,
) -> Scores:
    """Run a classifier over all views of all videos, shared among the processes.

    One video is one pass on any number of processes, so that the scores are the same to the bit. All
    processes make the same number of passes, as a model that is cut over them needs; what is scored twice
    counts once. Nothing is replaced: what cannot be read is in `skipped`.
    """
    model.eval()
    passes = math.ceil(len(clips) / accelerator.num_processes)
    mine = [(accelerator.process_index + i * accelerator.num_processes) % len(clips) for i in range(passes)]
    order: list[list[SampleKey]] = [[(0, index)] for index in mine]
    loader = make_loader(clips, order, workers=settings.workers, timeout=settings.data_timeout)
    rows: list[Row] = []
    for done, (index, clip) in enumerate(zip(mine, batches(loader), strict=True), start=1):
        scored = _probabilities(model, on_device(clip, accelerator.device), accelerator, keep)
        failed = failures(clip)
        problem = failed[0][0][1] if failed else None
        rows.append(Row(index, clip.video_id[0], clip.label[0].tolist(), scored, problem))
        report(
            {
                "event": "video",
                "done": min(done * accelerator.num_processes, len(clips)),
                "videos": len(clips),
            }
        )
    return _scores(gather_object(rows), model.heads)


def _probabilities(
    model: VideoClassifier, clip: Clip, accelerator: Accelerator, keep: float | None
) -> NDArray[np.float32]:
    frames: Tensor = normalise(clip.frames[0])  # (views, 3, T, H, W)
    with accelerator.autocast():
        logits = model(frames, keep=keep)  # (views, classes)
    return model.probabilities(logits).cpu().numpy()


def _scores(rows: Iterable[Row], heads: Mapping[str, int]) -> Scores:
    ordered = [row for _, row in sorted({row.place: row for row in rows}.items())]
    read = [row for row in ordered if row.problem is None]
    labels = np.array([row.labels for row in read], dtype=np.int64)
    return Scores(
        videos=[row.video for row in read],
        labels=labels.reshape(len(read), max(len(heads), 1)),
        probabilities=np.stack([row.probabilities for row in read])
        if read
        else np.zeros((0, 1, 1), np.float32),
        skipped=[(row.video, row.problem) for row in ordered if row.problem is not None],
        heads=heads,
    )
