"""Multi-view testing: every video in clips x crops views, its class from the mean of their probabilities."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from sklearn.metrics import recall_score
from torch import Tensor

from everest.bad_videos import AT_LEAST
from everest.build import ModelSpec
from everest.checkpoint import Weights, load_tensors
from everest.clips import Classes, test_clips
from everest.config.settings import Recipe, TrainSettings
from everest.data.datasets import Clip, Place, VideoClips, failures
from everest.data.loading import batches, make_loader
from everest.devices import on_device
from everest.errors import CheckpointError, DataError
from everest.files import check_writable, write_atomically
from everest.load import open_weights, require_kind
from everest.models.classifier import VideoClassifier
from everest.pixels import normalise
from everest.reports import Report, notice

Row = tuple[
    int, str, int, NDArray[np.float32] | str
]  # index, video, label, probabilities or why there are none


_NOTHING = np.zeros((0, 1, 1), np.float32)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a classifier says of videos, in the order of the list."""

    videos: list[str]
    labels: NDArray[np.int64]  # (videos,)
    probabilities: NDArray[np.float32]  # (videos, views, classes)
    skipped: list[tuple[str, str]]  # unreadable: path and reason


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
    classes = Classes(count=model.num_classes, names=weights.classes)
    clips = test_clips(recipe, classes)
    model.to(accelerator.device)
    scores = score_videos(model, clips, accelerator, settings=recipe.train, report=report)
    for path, reason in scores.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(scores, recipe.data.max_bad)
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
    if recipe.data.num_classes not in (None, spec.num_classes):
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
    order: list[list[Place]] = [[(0, index)] for index in mine]
    loader = make_loader(clips, order, workers=settings.workers, timeout=settings.data_timeout)
    rows: list[Row] = []
    for done, (index, clip) in enumerate(zip(mine, batches(loader), strict=True), start=1):
        scored = _probabilities(model, on_device(clip, accelerator.device), accelerator, keep)
        failed = failures(clip)
        rows.append((index, clip.video_id[0], int(clip.label[0, 0]), failed[0][0][1] if failed else scored))
        report(
            {
                "event": "video",
                "done": min(done * accelerator.num_processes, len(clips)),
                "videos": len(clips),
            }
        )
    return _scores(gather_object(rows))


def _probabilities(
    model: VideoClassifier, clip: Clip, accelerator: Accelerator, keep: float | None
) -> NDArray[np.float32]:
    frames: Tensor = normalise(clip.frames[0])  # (views, 3, T, H, W)
    with accelerator.autocast():
        logits = model(frames, keep=keep)  # (views, classes)
    return logits.float().softmax(dim=-1).cpu().numpy()


def _scores(rows: Iterable[Row]) -> Scores:
    ordered = [row for _, row in sorted({row[0]: row for row in rows}.items())]
    read = [(video, label, scored) for _, video, label, scored in ordered if not isinstance(scored, str)]
    return Scores(
        videos=[video for video, _, _ in read],
        labels=np.array([label for _, label, _ in read], dtype=np.int64),
        probabilities=np.stack([scored for _, _, scored in read])
        if read
        else np.zeros((0, 1, 1), np.float32),
        skipped=[(video, scored) for _, video, _, scored in ordered if isinstance(scored, str)],
    )


def refuse_too_many_skipped(scores: Scores, max_bad: float) -> None:
    """Raise DataError when so many videos could not be read that the accuracies say little."""
    skipped, asked = len(scores.skipped), len(scores.skipped) + len(scores.videos)
    if not scores.videos or (skipped >= AT_LEAST and skipped > max_bad * asked):
        path, reason = scores.skipped[0]
        raise DataError(
            f"{skipped} of {asked} videos could not be read, more than data.max_bad={max_bad} allows: "
            f"first {path} ({reason})"
        )


def write_predictions(path: Path, scores: Scores, classes: Classes) -> None:
    """One row a video: its label, what was predicted, and how sure."""
    means = scores.probabilities.mean(axis=1)  # (videos, classes)

    def write(part: Path) -> None:
        with part.open("w", newline="", errors="surrogateescape") as file:
            rows = csv.writer(file)
            rows.writerow(["video", "label", "predicted", "probability", "correct"])
            for video, label, mean in zip(scores.videos, scores.labels, means, strict=True):
                best = int(mean.argmax())
                names = classes.name(int(label)), classes.name(best)
                rows.writerow([video, *names, f"{mean[best]:.6f}", int(best == label)])

    write_atomically(path, write)


def accuracies(scores: Scores) -> dict[str, float]:
    """Percentages over the videos that could be read.

    top1, top5: of the mean probability over a video's views (released programs: softmax, mean, arg-max).
    mean_class_accuracy: top1 averaged over the classes that occur. clip_top1: of single views.
    majority_top1: of always answering the most frequent class.
    """
    labels, views = scores.labels, scores.probabilities
    per_video = views.mean(axis=1)  # (videos, classes)
    single = views.reshape(-1, views.shape[-1])  # (videos * views, classes)
    shares = {
        "top1": _top_k(per_video, labels, 1),
        "top5": _top_k(per_video, labels, 5),
        "mean_class_accuracy": float(
            recall_score(labels, per_video.argmax(axis=1), labels=np.unique(labels), average="macro")
        ),
        "clip_top1": _top_k(single, np.repeat(labels, views.shape[1]), 1),
        "majority_top1": np.bincount(labels).max() / len(labels),
    }
    return {name: round(100 * float(share), 4) for name, share in shares.items()}


def _top_k(probabilities: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())
