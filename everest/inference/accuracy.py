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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import recall_score

from everest.data.bad_videos import refuse_too_many
from everest.data.classes import Classes
from everest.inference.intervals import bootstrap_intervals
from everest.system.files import write_atomically

# Names in the document of `everest eval --json`: the title for readers, and the name of its chance level.
TITLES: Final[dict[str, tuple[str, str | None]]] = {
    "top1": ("top-1", "chance_top1"),
    "top5": ("top-5", "chance_top5"),
    "mean_class_accuracy": ("mean class accuracy", "chance_top1"),
    "clip_top1": ("top-1 of single views", "chance_top1"),
    "majority_top1": ("always the most frequent class", None),
    "action_top1": ("top-1, all heads", "chance_action_top1"),
}


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


def accuracies(predictions: Predictions, *, intervals: bool = False) -> dict[str, Any]:
    """Return the accuracies over the readable videos, in percent.

    top1, top5: of the mean probability over a video's views.
    mean_class_accuracy: top1 averaged over the classes that occur. clip_top1: of single views.
    majority_top1: of always answering the most frequent class. chance_top1, chance_top5: of guessing.
    Several heads have these under `heads`, by name; `action_top1` counts the videos with all heads correct.

    Args:
        intervals: adds `intervals`, the 95 % interval (low, high) of each measured accuracy, by its name.
    """
    by_head = predictions.by_head()
    if not predictions.heads:
        return _accuracies(by_head[""], intervals=intervals)
    all_correct = np.all([head.correct for head in by_head.values()], axis=0)  # (videos,)
    heads = {name: _accuracies(head, intervals=intervals) for name, head in by_head.items()}
    chance = round(chance_top1(list(predictions.heads.values())), 4)
    result = {"heads": heads, "action_top1": _percent(all_correct.mean()), "chance_action_top1": chance}
    if intervals:
        found = bootstrap_intervals({"action_top1": all_correct}, all_correct, predictions.labels[:, 0])
        result["intervals"] = {"action_top1": found["action_top1"]}
    return result


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


def _accuracies(head: HeadPredictions, *, intervals: bool) -> dict[str, Any]:
    labels, (_, views, classes) = head.labels, head.probabilities.shape
    single = head.probabilities.reshape(-1, classes)  # (videos * views, classes)
    outcomes = {  # (videos,) each
        "top1": head.correct,
        "top5": _in_top(head.means, labels, 5),
        "clip_top1": _in_top(single, np.repeat(labels, views), 1).reshape(-1, views).mean(axis=1),
    }
    recall = recall_score(labels, head.means.argmax(axis=1), labels=np.unique(labels), average="macro")
    shares = {
        "top1": outcomes["top1"].mean(),
        "top5": outcomes["top5"].mean(),
        "mean_class_accuracy": recall,
        "clip_top1": outcomes["clip_top1"].mean(),
        "majority_top1": np.bincount(labels).max() / len(labels),
        "chance_top1": 1 / classes,
        "chance_top5": min(5, classes) / classes,
    }
    result: dict[str, Any] = {name: _percent(share) for name, share in shares.items()}
    return result | ({"intervals": bootstrap_intervals(outcomes, head.correct, labels)} if intervals else {})


def _percent(share: Any) -> float:
    return round(100 * float(share), 4)


def _in_top(probabilities: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def accuracy_rows(result: dict[str, Any], head: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, 95 % interval and chance of the accuracies in the document of `everest eval --json`.

    Args:
        head: begins the names.
    """
    for name, of_head in result.get("heads", {}).items():
        yield from accuracy_rows(of_head, f"{name} ")
    for name, (title, chance) in TITLES.items():
        if name in result:
            interval = result.get("intervals", {}).get(name)
            shown = "" if interval is None else f"{_digits(interval[0])} to {percent(interval[1])}"
            yield head + title, percent(result[name]), shown, percent(result[chance]) if chance else ""


def fact_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how the accuracies in the document of `everest eval --json` were measured."""
    views = result["views"]
    yield "videos", str(result["videos"])
    yield "views of a video", f"{views['clips']} clips x {views['crops']} crops"
    yield "skipped (unreadable)", str(result["skipped"])
    yield "time", f"{result['seconds']} s"
    yield from ((name, str(result[name])) for name in ("checkpoint", "recipe", "report") if name in result)


def percent(value: float) -> str:
    return f"{_digits(value)}\N{NO-BREAK SPACE}%"


def _digits(value: float) -> str:
    """Return a percentage with one decimal; with two near 0 and 100, so that 99.98 is not read as 100."""
    return f"{value:.2f}" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f}"


def sweep_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of `sweep` in the document of `everest eval --json`."""
    texts = []
    for row in rows:
        cells = {"keep ratio": str(row["keep"]), "tokens": str(row["tokens"]), "GMACs": str(row["gmacs"])}
        for name, value, interval, _ in accuracy_rows(row):
            if not name.endswith((TITLES["clip_top1"][0], TITLES["majority_top1"][0])):
                cells[name] = f"{value} ({interval})"
        texts.append(cells)
    return list(texts[0]), [list(cells.values()) for cells in texts]


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
