"""The predictions of a classifier for the videos of a list, and their accuracies.

A head predicts one label of a video, such as its verb or its noun. Most classifiers have one head, without a
name.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import recall_score

from everest.data.bad_videos import refuse_too_many
from everest.data.classes import Classes
from everest.system.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class HeadPredictions:
    """The predictions of one head."""

    labels: NDArray[np.int64]  # (videos,)
    probabilities: NDArray[np.float32]  # (videos, views, classes)

    @property
    def means(self) -> NDArray[np.float32]:
        """(videos, classes): the mean over a video's views (released programs: softmax, mean, arg-max)."""
        return self.probabilities.mean(axis=1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(videos,) whether the most probable class is the label."""
        return _in_top(self.means, self.labels, 1)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of a classifier, in the order of the list."""

    videos: list[str]
    labels: NDArray[np.int64]  # (videos, heads)
    probabilities: NDArray[np.float32]  # (videos, views, classes of all heads); each head sums to 1
    skipped: list[tuple[str, str]]  # path and reason of unreadable videos
    heads: Mapping[str, int]  # classes of each head; empty for a single head without a name

    def by_head(self) -> dict[str, HeadPredictions]:
        """The predictions of each head; the name of a single head is empty."""
        heads = self.heads or {"": self.probabilities.shape[-1]}
        ends = np.cumsum(list(heads.values()))[:-1]
        parts = np.split(self.probabilities, ends, axis=-1)
        return {
            name: HeadPredictions(labels=self.labels[:, i], probabilities=part)
            for i, (name, part) in enumerate(zip(heads, parts, strict=True))
        }


def accuracies(predictions: Predictions) -> dict[str, Any]:
    """Return the accuracies over the readable videos, in percent.

    top1, top5: of the mean probability over a video's views.
    mean_class_accuracy: top1 averaged over the classes that occur. clip_top1: of single views.
    majority_top1: of always answering the most frequent class.
    Several heads have these under `heads`, by name; `action_top1` counts the videos with all heads correct.
    """
    by_head = predictions.by_head()
    if not predictions.heads:
        return _accuracies(by_head[""])
    all_correct = np.all([head.correct for head in by_head.values()], axis=0)  # (videos,)
    heads = {name: _accuracies(head) for name, head in by_head.items()}
    return {"heads": heads, "action_top1": _percent(all_correct.mean())}


def mean_loss(predictions: Predictions) -> float:
    """The cross-entropy of the mean probability of a video, over all videos and heads."""
    smallest = np.finfo(np.float32).tiny
    losses = [
        -np.log(np.maximum(head.means[np.arange(len(head.labels)), head.labels], smallest)).mean()
        for head in predictions.by_head().values()
    ]
    return float(np.mean(losses))


def chance_top1(num_classes: Sequence[int]) -> float:
    """The top-1 accuracy of guessing, in percent; of several heads, that all are right."""
    return 100 / math.prod(num_classes)


def _accuracies(head: HeadPredictions) -> dict[str, float]:
    labels, views, means = head.labels, head.probabilities, head.means
    single = views.reshape(-1, views.shape[-1])  # (videos * views, classes)
    recall = recall_score(labels, means.argmax(axis=1), labels=np.unique(labels), average="macro")
    shares = {
        "top1": head.correct.mean(),
        "top5": _in_top(means, labels, 5).mean(),
        "mean_class_accuracy": recall,
        "clip_top1": _in_top(single, np.repeat(labels, views.shape[1]), 1).mean(),
        "majority_top1": np.bincount(labels).max() / len(labels),
    }
    return {name: _percent(share) for name, share in shares.items()}


def _percent(share: Any) -> float:
    return round(100 * float(share), 4)


def _in_top(probabilities: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def summary_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values of the document of `everest eval --json`; a head's names begin with its own."""
    for name, value in result.items():
        if name == "heads":
            for head, accuracy in value.items():
                yield from ((f"{head} {key}", text) for key, text in summary_rows(accuracy))
        elif name == "views":
            yield name, f"{value['clips']} x {value['crops']}"
        elif name != "sweep":
            yield name.replace("_", " "), str(value)


def sweep_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of `sweep` in the document of `everest eval --json`; heads show their top1."""
    columns = ("keep", "tokens", "gmacs", "top1", "top5", "mean_class_accuracy", "action_top1")
    texts = [
        {name.replace("_", " "): str(row[name]) for name in columns if name in row}
        | {f"{head} top1": str(accuracy["top1"]) for head, accuracy in row.get("heads", {}).items()}
        for row in rows
    ]
    return list(texts[0]), [list(row.values()) for row in texts]


def refuse_too_many_skipped(predictions: Predictions, max_bad: float) -> None:
    """Raise DataError when more than the share `max_bad` of the videos is unreadable."""
    num_videos = len(predictions.skipped) + len(predictions.videos)
    refuse_too_many(predictions.skipped, requested=num_videos, max_bad=max_bad)


def write_predictions(path: Path, predictions: Predictions, classes: Classes) -> None:
    """Write a CSV row per video: label, predicted class, its probability; each head has these columns."""
    by_head = predictions.by_head()
    columns = ("label", "predicted", "probability", "correct")
    header = [f"{column}.{name}" if name else column for name in by_head for column in columns]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["video", *header])
            for i, video in enumerate(predictions.videos):
                row = [video]
                for head in by_head.values():
                    label, mean = int(head.labels[i]), head.probabilities[i].mean(axis=0)  # (classes,)
                    best = int(mean.argmax())
                    row += [classes.name(label), classes.name(best)]
                    row += [f"{mean[best]:.6f}", str(int(best == label))]
                rows.writerow(row)

    write_atomically(path, write)
