"""Multi-view testing: every video in clips x crops views, its class from the mean of their probabilities."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from dataclasses import dataclass
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
from everest.checkpoint import read_weights, write_atomically
from everest.clips import Classes, test_clips
from everest.data.datasets import Clip, VideoClips, make_loader
from everest.errors import DataError
from everest.load import model_of, require_kind
from everest.models.classifier import VideoClassifier
from everest.pixels import normalise
from everest.settings import Recipe
from everest.training import Report, make_accelerator, on_device


def evaluate(
    recipe: Recipe, weights_file: Path, *, cpu: bool, report: Report, predictions: Path | None = None
) -> dict[str, Any]:
    """Test a classifier on the recipe's `data.test`; the accuracies with all that tells how they came about.

    Args:
        predictions: a CSV file to write, one row a video.
    Raises:
        CheckpointError: no classifier, or one of another size than the recipe.
        DataError: more videos than `data.max_bad` allows could not be read.
    """
    began = time.monotonic()
    weights = read_weights(weights_file)
    require_kind(weights, "classifier", source=weights_file)
    model = model_of(weights, source=weights_file)
    assert isinstance(model, VideoClassifier)
    classes = Classes(count=model.num_classes, names=weights.classes)
    clips = test_clips(recipe, classes)
    accelerator = make_accelerator(recipe.train, cpu=cpu)
    scores = score_videos(
        model.to(accelerator.device), clips, accelerator, workers=recipe.train.workers, report=report
    )
    for path, reason in scores.skipped.items():
        report({"event": "notice", "text": f"skipped {path}: {reason}"})
    _refuse_too_many_skipped(scores, recipe.data.max_bad)
    if predictions is not None:
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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a classifier says of videos, in the order of the list."""

    videos: list[str]
    labels: NDArray[np.int64]  # (videos,)
    probabilities: NDArray[np.float32]  # (videos, views, classes)
    skipped: dict[str, str]  # unreadable: path to reason


@torch.inference_mode()
def score_videos(
    model: VideoClassifier,
    clips: VideoClips,
    accelerator: Accelerator,
    *,
    workers: int,
    report: Report,
    keep: float | None = None,
) -> Scores:
    """Run a classifier over all views of all videos, shared among the processes.

    One video is one pass on any number of processes, so that the scores are the same to the bit. Nothing is
    replaced: what cannot be read is in `skipped`.
    """
    model.eval()
    mine = range(accelerator.process_index, len(clips), accelerator.num_processes)
    loader = make_loader(clips, [[(0, index)] for index in mine], workers=workers)
    rows: list[tuple[int, str, int, NDArray[np.float32] | str]] = []
    for done, (index, clip) in enumerate(zip(mine, loader, strict=True), start=1):
        scored = clip.failed[0] or _probabilities(
            model, on_device(clip, accelerator.device), accelerator, keep
        )
        rows.append((index, clip.video_id[0], int(clip.label[0, 0]), scored))
        report({"event": "video", "done": done * accelerator.num_processes, "videos": len(clips)})
    return _scores(gather_object(rows))


def _probabilities(
    model: VideoClassifier, clip: Clip, accelerator: Accelerator, keep: float | None
) -> NDArray[np.float32]:
    frames: Tensor = normalise(clip.frames[0])  # (views, 3, T, H, W)
    with accelerator.autocast():
        logits = model(frames, keep=keep)  # (views, classes)
    return logits.float().softmax(dim=-1).cpu().numpy()


def _scores(rows: Iterable[tuple[int, str, int, NDArray[np.float32] | str]]) -> Scores:
    ordered = sorted(rows, key=lambda row: row[0])
    read = [row for row in ordered if not isinstance(row[3], str)]
    return Scores(
        videos=[video for _, video, _, _ in read],
        labels=np.array([label for _, _, label, _ in read], dtype=np.int64),
        probabilities=np.stack([scored for _, _, _, scored in read])
        if read
        else np.zeros((0, 1, 1), np.float32),
        skipped={video: scored for _, video, _, scored in ordered if isinstance(scored, str)},
    )


def _refuse_too_many_skipped(scores: Scores, max_bad: float) -> None:
    skipped, asked = len(scores.skipped), len(scores.skipped) + len(scores.videos)
    if not scores.videos or (skipped >= AT_LEAST and skipped > max_bad * asked):
        path, reason = next(iter(scores.skipped.items()))
        raise DataError(
            f"{skipped} of {asked} videos could not be read, more than data.max_bad={max_bad} allows: "
            f"first {path} ({reason})"
        )


def write_predictions(path: Path, scores: Scores, classes: Classes) -> None:
    """One row a video: its label, what was predicted, and how sure."""
    name = classes.name
    means = scores.probabilities.mean(axis=1)  # (videos, classes)

    def write(part: Path) -> None:
        with part.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["video", "label", "predicted", "probability", "correct"])
            for video, label, mean in zip(scores.videos, scores.labels, means, strict=True):
                best = int(mean.argmax())
                rows.writerow([video, name(int(label)), name(best), f"{mean[best]:.6f}", int(best == label)])

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
