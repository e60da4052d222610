"""What a classifier said of videos, and how right it was.

A head is a question with classes of its own, such as verb and noun; most classifiers have one, unnamed.
"""

from __future__ import annotations

import csv
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
class HeadScores:
    """What one head says of videos."""

    labels: NDArray[np.int64]  # (videos,)
    probabilities: NDArray[np.float32]  # (videos, views, classes)

    @property
    def means(self) -> NDArray[np.float32]:
        """(videos, classes): the mean over a video's views (released programs: softmax, mean, arg-max)."""
        return self.probabilities.mean(axis=1)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(videos,) whether the most probable class is the label."""
        return _in_top(self.means, self.labels, 1)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a classifier says of videos, in the order of the list."""

    videos: list[str]
    labels: NDArray[np.int64]  # (videos, heads)
    probabilities: NDArray[np.float32]  # (videos, views, classes of all heads), of each head sum 1
    skipped: list[tuple[str, str]]  # unreadable: path and reason
    heads: Mapping[str, int]  # classes of each; empty where there is one head, without a name

    def by_head(self) -> dict[str, HeadScores]:
        """The scores of each head; the name of the only one is empty."""
        heads = self.heads or {"": self.probabilities.shape[-1]}
        ends = np.cumsum(list(heads.values()))[:-1]
        parts = np.split(self.probabilities, ends, axis=-1)
        return {
            name: HeadScores(labels=self.labels[:, i], probabilities=part)
            for i, (name, part) in enumerate(zip(heads, parts, strict=True))
        }


def accuracies(scores: Scores) -> dict[str, Any]:
    """Percentages over the videos that could be read.

    top1, top5: of the mean probability over a video's views.
    mean_class_accuracy: top1 averaged over the classes that occur. clip_top1: of single views.
    majority_top1: of always answering the most frequent class.
    Of several heads these are under `heads`, by name, and `action_top1` counts videos of which all are right.
    """
    by_head = scores.by_head()
    if not scores.heads:
        return _accuracies(by_head[""])
    right = np.all([head.right for head in by_head.values()], axis=0)  # (videos,)
    found = {name: _accuracies(head) for name, head in by_head.items()}
    return {"heads": found, "action_top1": _percent(right.mean())}


def summary_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of the document of `everest eval --json`; those of a head begin with its name."""
    for name, value in result.items():
        told = name.replace("_", " ")
        if name == "heads":
            for head, found in value.items():
                yield from ((f"{head} {key}", shown) for key, shown in summary_rows(found))
        elif name == "views":
            yield told, f"{value['clips']} x {value['crops']}"
        elif name != "sweep":
            yield told, str(value)


def sweep_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of `sweep` in the document of `everest eval --json`; of several heads the top1."""
    told = [dict(_swept(row)) for row in rows]
    return list(told[0]), [list(row.values()) for row in told]


def _swept(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("keep", "tokens", "gmacs", "top1", "top5", "mean_class_accuracy", "action_top1"):
        if name in row:
            yield name.replace("_", " "), str(row[name])
    yield from ((f"{head} top1", str(found["top1"])) for head, found in row.get("heads", {}).items())


def _accuracies(scores: HeadScores) -> dict[str, float]:
    labels, views = scores.labels, scores.probabilities
    single = views.reshape(-1, views.shape[-1])  # (videos * views, classes)
    recall = recall_score(labels, scores.means.argmax(axis=1), labels=np.unique(labels), average="macro")
    shares = {
        "top1": scores.right.mean(),
        "top5": _in_top(scores.means, labels, 5).mean(),
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


def refuse_too_many_skipped(scores: Scores, max_bad: float) -> None:
    """Raise DataError when so many videos could not be read that the accuracies say little."""
    refuse_too_many(scores.skipped, requested=len(scores.skipped) + len(scores.videos), max_bad=max_bad)


def write_predictions(path: Path, scores: Scores, classes: Classes) -> None:
    """One row a video: its label, what was predicted, how sure; of several heads these columns for each."""
    by_head = scores.by_head()
    columns = ("label", "predicted", "probability", "correct")
    header = [f"{column}.{name}" if name else column for name in by_head for column in columns]

    def write(part: Path) -> None:
        with part.open("w", newline="", errors="surrogateescape") as file:
            rows = csv.writer(file)
            rows.writerow(["video", *header])
            for number, video in enumerate(scores.videos):
                said = [_told(head, number, classes) for head in by_head.values()]
                rows.writerow([video, *(value for values in said for value in values)])

    write_atomically(path, write)


def _told(head: HeadScores, number: int, classes: Classes) -> tuple[str, str, str, int]:
    label, mean = int(head.labels[number]), head.probabilities[number].mean(axis=0)  # (classes,)
    best = int(mean.argmax())
    return classes.name(label), classes.name(best), f"{mean[best]:.6f}", int(best == label)
