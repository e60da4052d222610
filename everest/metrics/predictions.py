"""The outputs of a classifier for the videos of a list, with their labels, and as a file.

A head predicts one property of a video, such as its verb or its noun. Most classifiers have one head,
without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everest.config.heads import MULTI_LABEL, Head, Heads, Task
from everest.data.bad_videos import refuse_too_many
from everest.lists.classes import Classes
from everest.lists.labels import JOINED_BY, Label
from everest.system.files import write_table
from everest.system.types import Floats


@dataclass(frozen=True, kw_only=True)
class HeadPredictions:
    """The outputs of one head. V videos, C outputs."""

    head: Head
    # (V,) int64 classes, (V, C) bool flags of a multi-label head, or (V,) float64 numbers
    labels: NDArray[Any]
    outputs: NDArray[np.float32]  # (V, views, C): probabilities, or numbers

    @property
    def task(self) -> Task:
        return self.head.task

    @property
    def means(self) -> NDArray[np.float32]:
        """(V, C): the mean over a video's views (official code: softmax, mean, arg-max)."""
        return self.outputs.mean(axis=1)

    @property
    def is_predicted(self) -> NDArray[np.bool_]:
        """(V, C) whether each class of a multi-label head is predicted."""
        return self.means >= np.array(self.head.thresholds)

    def class_flags(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each video has each class, and whether it is predicted, (V, C) each."""
        if self.task == MULTI_LABEL:
            return self.labels, self.is_predicted
        classes = np.arange(self.head.outputs)
        return self.labels[:, None] == classes, self.means.argmax(axis=1)[:, None] == classes


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The outputs of a classifier, in the order of the list."""

    videos: list[str]
    labels: Sequence[tuple[Label, ...]]  # labels of each video, one per head
    outputs: NDArray[np.float32]  # (videos, views, outputs of all heads)
    skipped: list[tuple[str, str]]  # path and reason of unreadable videos
    heads: Heads
    groups: Sequence[str] = field(default=())  # source of each video; empty: each video is a separate source

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Join the predictions of several models for different videos."""
        return cls(
            videos=[video for part in parts for video in part.videos],
            labels=[labels for part in parts for labels in part.labels],
            outputs=np.concatenate([part.outputs for part in parts]),
            skipped=[problem for part in parts for problem in part.skipped],
            heads=parts[0].heads,
            groups=[group for part in parts for group in part.groups],
        )

    def by_head(self) -> dict[str, HeadPredictions]:
        """The outputs of each head; the name of a single head is empty."""
        ends = np.cumsum([head.outputs for head in self.heads])[:-1]
        parts = np.split(self.outputs, ends, axis=-1)
        by_head = {}
        for head_index, (head, head_outputs) in enumerate(zip(self.heads, parts, strict=True)):
            labels = label_array([row[head_index] for row in self.labels], head)
            by_head[head.name] = HeadPredictions(head=head, labels=labels, outputs=head_outputs)
        return by_head


def label_array(labels: Sequence[Label], head: Head) -> NDArray[Any]:
    """Return the labels of V videos for one head as an array; see `HeadPredictions.labels`."""
    if head.task != MULTI_LABEL:
        return np.array(labels, dtype=np.float64 if head.task == "regression" else np.int64)
    array = np.zeros((len(labels), head.outputs), dtype=np.bool_)
    for row, classes in zip(array, labels, strict=True):
        row[list(classes)] = True  # type: ignore[arg-type]
    return array


def label_probabilities(probabilities: Floats, labels: NDArray[Any], task: Task) -> Floats:
    """The probability of each label of classes: (V, C) of a multi-label head, else (V, 1)."""
    if task == MULTI_LABEL:
        return np.where(labels, probabilities, 1 - probabilities)
    return probabilities[np.arange(len(labels)), labels][:, None]


def in_top(probabilities: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(V,) whether the label is among the k most probable of (V, C) classes."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def refuse_too_many_skipped(predictions: Predictions, max_bad: float) -> None:
    """Raise DataError when more than the fraction `max_bad` of the videos is unreadable."""
    num_videos = len(predictions.skipped) + len(predictions.videos)
    refuse_too_many(predictions.skipped, requested=num_videos, max_bad=max_bad)


def write_predictions(path: Path, predictions: Predictions, classes: Classes) -> None:
    """Write a CSV row per video; with several heads, the columns of a head end in its name.

    Videos with groups have a column `group`. A head of classes has `label`, `predicted`, `correct` and
    `probability.CLASS` for each class, with one label also the `probability` of the predicted class. A head
    of numbers has `label`, `predicted` and `error`.
    """
    columns: list[tuple[str, Sequence[str]]] = [("video", predictions.videos)]
    columns += [("group", predictions.groups)] if predictions.groups else []
    for name, part in predictions.by_head().items():
        suffix = f".{name}" if name else ""
        columns += [(f"{title}{suffix}", texts) for title, texts in _columns(part, classes)]
    rows = zip(*(texts for _, texts in columns), strict=True)
    write_table(path, [[title for title, _ in columns], *rows])


def _columns(predictions: HeadPredictions, classes: Classes) -> list[tuple[str, list[str]]]:
    """The titles of the columns of a head, with a text for each video."""
    means, labels = predictions.means, predictions.labels
    if predictions.task == "regression":
        return [
            ("label", [f"{label:.15g}" for label in labels]),
            ("predicted", [f"{number:.7g}" for number in means[:, 0]]),
            ("error", [f"{error:.6g}" for error in means[:, 0] - labels]),
        ]
    flags = predictions.class_flags()  # (V, C) each
    named = [
        (title, [JOINED_BY.join(classes.name(int(c)) for c in row.nonzero()[0]) for row in rows])
        for title, rows in zip(("label", "predicted"), flags, strict=True)
    ]
    correct = ("correct", [str(int(is_right)) for is_right in (flags[0] == flags[1]).all(axis=1)])
    columns = [(f"probability.{classes.name(c)}", column) for c, column in enumerate(means.T)]
    if predictions.task != MULTI_LABEL:
        named.append(("probability", [f"{x:.6f}" for x in means.max(axis=1)]))
    return [*named, correct, *((title, [f"{x:.6f}" for x in column]) for title, column in columns)]
