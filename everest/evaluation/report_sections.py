"""The parts of the report of an evaluation about one head each, with their plots as files.

V videos, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from everest.config.heads import MULTI_LABEL
from everest.evaluation.confusion import (
    ClassResult,
    Confusion,
    Mistake,
    class_results,
    count_confusions,
    draw_confusion,
    most_frequent_confusions,
    surest_mistakes,
)
from everest.evaluation.reliability import draw_reliability
from everest.evaluation.task_figures import PrecisionRecall, draw_precision_recall, draw_scatter
from everest.evaluation.worst_videos import NumberError, WrongClasses, largest_errors, wrong_classes
from everest.figures.data_uris import png_uri
from everest.metrics.calibration import apply_temperature, expected_calibration_error
from everest.metrics.metrics import per_class
from everest.metrics.predicted import HeadPredictions

LONGEST_PLOT_NAME: Final = 200  # a file name has up to 255 bytes
CONFUSION: Final = "confusion"  # with a head's name, and .png
CURVES: Final = "precision-recall"
SCATTER: Final = "scatter"
RELIABILITY: Final = "reliability"
PLOTS: Final = (CONFUSION, CURVES, SCATTER, RELIABILITY)
MISTAKES: Final = 12  # shown per head
CONFUSIONS: Final = 20  # listed per head

Image = str  # a data URI
FramesOf = Callable[[str], Image]  # of a video, by its name in the list


@dataclass(frozen=True, kw_only=True)
class SingleLabelSection:
    """The part about a head of classes of which one is right."""

    template: ClassVar[str] = "page_single_label.html"
    name: str  # empty for a single head
    classes: Sequence[ClassResult]
    scores: Sequence[dict[str, Any]]  # of each class, by its number
    matrix: Image
    file: str  # of the matrix, as a link
    confusions: Sequence[Confusion]
    mistakes: Sequence[tuple[Mistake, Image]]
    reliability: Image


@dataclass(frozen=True, kw_only=True)
class MultiLabelSection:
    """The part about a head of classes of which a video has any number."""

    template: ClassVar[str] = "page_multi_label.html"
    name: str
    classes: Sequence[tuple[int, dict[str, Any]]]  # number and scores, worst first
    curves: Image | None  # None: no video has a class
    file: str
    mistakes: Sequence[tuple[WrongClasses, Image]]
    reliability: Image


@dataclass(frozen=True, kw_only=True)
class NumberSection:
    """The part about a head of numbers."""

    template: ClassVar[str] = "page_regression.html"
    name: str
    scatter: Image
    file: str
    mistakes: Sequence[tuple[NumberError, Image]]


Section = SingleLabelSection | MultiLabelSection | NumberSection


def is_plot(name: str) -> bool:
    """Whether the name is that of a plot of a head."""
    return name.startswith(PLOTS) and name.endswith(".png")


def make_section(
    folder: Path,
    head: HeadPredictions,
    *,
    videos: Sequence[str],
    names: Sequence[str],
    frames_of: FramesOf,
) -> Section:
    """Write the plot of a head and return its part of the page.

    Args:
        videos: (V,) names in the list.
        names: of the classes.
        frames_of: reads some frames of a video.
    """
    if head.head.task == "regression":
        return _of_numbers(folder, head, videos, frames_of)
    if head.head.task == MULTI_LABEL:
        return _of_several(folder, head, videos, names, frames_of)
    return _of_one(folder, head, videos, names, frames_of)


def _of_one(
    folder: Path, head: HeadPredictions, videos: Sequence[str], names: Sequence[str], frames_of: FramesOf
) -> SingleLabelSection:
    counts, plot = count_confusions(head), _plot(folder, CONFUSION, head)  # (C, C)
    draw_confusion(plot, counts, names)
    mistakes = surest_mistakes(head, videos, names, most=MISTAKES)
    return SingleLabelSection(
        name=head.head.name,
        classes=class_results(counts, names),
        scores=per_class(head, names),
        matrix=png_uri(plot),
        file=quote(plot.name),
        confusions=most_frequent_confusions(counts, names, most=CONFUSIONS),
        mistakes=[(mistake, frames_of(mistake.video)) for mistake in mistakes],
        reliability=_reliability(folder, head),
    )


def _of_several(
    folder: Path, head: HeadPredictions, videos: Sequence[str], names: Sequence[str], frames_of: FramesOf
) -> MultiLabelSection:
    rows = per_class(head, names)
    used = [number for number, row in enumerate(rows) if row["videos"]]
    used.sort(key=lambda number: -rows[number]["videos"])  # the most frequent ones have a color
    plot = _plot(folder, CURVES, head)
    plot.unlink(missing_ok=True)  # of an earlier evaluation
    if used:
        draw_precision_recall(plot, {names[number]: _curve(head, number) for number in used})
    mistakes = wrong_classes(head, videos, names, most=MISTAKES)
    worst = sorted(enumerate(rows), key=lambda row: 101.0 if row[1]["ap"] is None else row[1]["ap"])
    return MultiLabelSection(
        name=head.head.name,
        classes=worst,
        curves=png_uri(plot) if used else None,
        file=plot.name,
        mistakes=[(mistake, frames_of(mistake.video)) for mistake in mistakes],
        reliability=_reliability(folder, head),
    )


def _curve(head: HeadPredictions, number: int) -> PrecisionRecall:
    """Return precision by recall of a class that some video has."""
    labels, scores = head.labels[:, number], head.means[:, number]  # (V,) each
    precision, recall, _ = precision_recall_curve(labels, scores)
    return PrecisionRecall(recall, precision, float(average_precision_score(labels, scores)))


def _reliability(folder: Path, head: HeadPredictions) -> Image:
    """Write the plot of accuracy by confidence, also with the temperature if the weights have one."""
    task, calibration = head.head.task, head.head.calibration
    assert task != "regression"
    _, before = expected_calibration_error(head.means, head.labels)
    after = None
    if calibration is not None:
        scaled = apply_temperature(head.means, calibration.temperature, task)
        _, after = expected_calibration_error(scaled, head.labels)
    plot = _plot(folder, RELIABILITY, head)
    draw_reliability(plot, before, after)
    return png_uri(plot)


def _of_numbers(
    folder: Path, head: HeadPredictions, videos: Sequence[str], frames_of: FramesOf
) -> NumberSection:
    plot = _plot(folder, SCATTER, head)
    draw_scatter(plot, head.labels, head.means[:, 0].astype(np.float64), unit_name="")
    errors = largest_errors(head, videos, most=MISTAKES)
    return NumberSection(
        name=head.head.name,
        scatter=png_uri(plot),
        file=plot.name,
        mistakes=[(error, frames_of(error.video)) for error in errors],
    )


def _plot(folder: Path, kind: str, head: HeadPredictions) -> Path:
    name = head.head.name
    suffix = f"-{quote(name, safe='')[:LONGEST_PLOT_NAME]}" if name else ""
    return folder / f"{kind}{suffix}.png"
