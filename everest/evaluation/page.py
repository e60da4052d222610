"""The page of an evaluation: a folder with a self-contained HTML file, and its plots as separate files.

The plots show confusions between classes, or predicted against true numbers.

V videos, C classes; C channels, T frames, H W pixels of clips.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import torch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from everest.data.clip_dataset import ClipDataset
from everest.data.views import EvalViews
from everest.figures.pages import encode_uri, write_page
from everest.figures.rows import with_three_channels
from everest.figures.style import COLORS, escape_dollars, saved_figure, shorten
from everest.lists.classes import Classes
from everest.lists.sample import ListSize
from everest.metrics.head_metrics import FEW_OF_CLASS, per_class
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import METRICS, measurement_rows, metric_rows, percent_text, views_text
from everest.metrics.predictions import HeadPredictions, Predictions, label_probabilities
from everest.system.text import plural

PAGE: Final = "index.html"
PLOTS: Final = {"single-label": "confusion", "regression": "scatter"}  # stems of file names
STRIP: Final = 480  # pixels: width of the strip of a video's three frames
MISTAKES: Final = 12  # number of mistakes shown per head
LONGEST_NAME: Final = 32  # maximum number of letters
MOST_NUMBERED: Final = 30  # maximum number of classes for which matrix cells show counts

Names = Sequence[str]  # names of videos or classes


@dataclass(frozen=True)
class Summary:
    """The introduction of a page, below its title."""

    lines: Sequence[str] = ()
    links: Mapping[str, Path] = field(default_factory=dict)  # links to other pages, by link text
    figure: str | None = None  # path of a PNG
    title: str | None = None  # title of the page; None: made from the checkpoint
    intervals: Mapping[str, Sequence[float] | None] = field(default_factory=dict)  # intervals of the classes


def write_evaluation_page(
    folder: Path,
    result: dict[str, Any],
    predictions: Predictions,
    classes: Classes,
    dataset: ClipDataset,
    summary: Summary = Summary(),
) -> Path:
    """Write the plots, then the page; return the path of the page.

    Args:
        result: the document of `everest eval --json`.
        dataset: the evaluated videos; the worst videos are read again for the page.
    """
    (folder / PAGE).unlink(missing_ok=True)  # an old page must not stand beside new plots
    show_video = partial(_show_video, dataset, predictions)
    noun = ListSize.of(dataset.samples).noun
    heads = [
        _draw_head(folder, head, classes.names_of_head(head.head), show_video, noun=noun)
        for head in predictions.by_head().values()
    ]
    return _write_page(
        folder,
        title=summary.title or f"Evaluation of {result['checkpoint']}",
        views=views_text(result, noun),
        metrics=metric_rows(result),
        num_videos=result["videos"],
        num_groups=result["groups"],
        noun=noun,
        facts=[row for row in measurement_rows(result, noun) if row[0] != "checkpoint"],  # the title has it
        heads=heads,
        skipped=predictions.skipped,
        summary=summary,
    )


def write_pooled_page(
    folder: Path,
    results: Mapping[str, dict[str, Any]],
    predictions: Predictions,
    classes: Classes,
    dataset: ClipDataset,
    *,
    noun: str,
    summary: Summary,
) -> Path:
    """Write the page of several models with the same test, with their outputs joined; return its path.

    Args:
        results: `metric`, `value`, `chance`, … of all models together, then of each model, by title.
        predictions: joined predictions of all models, which have one head.
        dataset: the test videos; the worst videos are read again for the page.
    """
    pooled = next(iter(results.values()))
    (head,) = predictions.by_head().values()
    show_video = partial(_show_video, dataset, predictions)
    metric = pooled["metric"]
    documents = {
        title: {
            metric: result["value"],
            METRICS[metric].chance or "": result["chance"],
            "intervals": {metric: result["interval"]},
        }
        for title, result in results.items()
    }
    return _write_page(
        folder,
        title=f"{summary.title}, all folds together",
        views="",
        metrics=[row for title, document in documents.items() for row in metric_rows(document, title)],
        num_videos=len(head.labels),
        num_groups=pooled["groups"],
        noun=noun,
        facts=[
            (f"{noun}s", f"{len(head.labels)}, from {plural(pooled['groups'], 'group')}"),
            ("skipped (unreadable)", str(pooled["skipped"])),
        ],
        heads=[_draw_head(folder, head, classes.names_of_head(head.head), show_video, noun=noun)],
        skipped=[],
        summary=summary,
    )


def _show_video(dataset: ClipDataset, predictions: Predictions, index: int) -> tuple[str, str]:
    """Return a video's name with its group, and three frames of its middle view as a data URL."""
    video, views = predictions.videos[index], dataset.make_views
    assert isinstance(views, EvalViews)
    middle = views.clips // 2 * views.crops + views.crops // 2  # the middle crop of the middle clip
    place = next(place for place, sample in enumerate(dataset.samples) if sample.video_id == video)
    view = dataset.read((0, place)).frames[middle].movedim(0, -1)  # (T, H, W, C)
    shown = sorted({0, len(view) // 2, len(view) - 1})
    frames = torch.cat([view[time] for time in shown], dim=1)  # (H, 3 W, C)
    image = Image.fromarray(with_three_channels(frames).contiguous().numpy())
    buffer = io.BytesIO()
    image.thumbnail((STRIP, STRIP))
    image.save(buffer, format="JPEG", quality=88)
    group = dataset.samples[place].group
    name = video if group is None else f"{video}, group {group}"
    return name, encode_uri("image/jpeg", buffer.getvalue())


def _write_page(
    folder: Path, *, num_videos: int, num_groups: int, noun: str, summary: Summary, **values: Any
) -> Path:
    """Fill the page template and write the page."""
    unit_of_draws = f"groups of {noun}s" if num_groups < num_videos else f"{noun}s"
    constants = {"few_groups": FEW_GROUPS, "few_of_class": FEW_OF_CLASS, "most_numbered": MOST_NUMBERED}
    values |= {"longest_name": LONGEST_NAME, "percent_text": percent_text, **constants}
    page = folder / PAGE
    values["links"] = {
        quote(Path(os.path.relpath(path, folder)).as_posix()): text for text, path in summary.links.items()
    }
    image = None if summary.figure is None else encode_uri("image/png", Path(summary.figure).read_bytes())
    values |= {"lines": summary.lines, "figure": image, "intervals": summary.intervals}
    write_page(
        page, "everest.evaluation", "page.html", groups=num_groups, unit=noun, sampled=unit_of_draws, **values
    )
    return page


def _draw_head(
    folder: Path,
    head: HeadPredictions,
    names: Names,
    show_video: Callable[[int], tuple[str, str]],
    *,
    noun: str,
) -> Mapping[str, Any]:
    """Write the plot of a head, and return the values of its part of the page.

    `show_video` gives the name and the frames of a video by its number.
    """
    name = head.head.name
    task = head.task
    suffix = f"-{quote(name, safe='')[:200]}" if name else ""  # a file name has up to 255 bytes
    plot = folder / f"{PLOTS.get(task)}{suffix}.png"
    plot_values: dict[str, Any] = {"plot": None, "confusions": []}
    if task == "regression":
        draw_scatter(plot, head.labels, head.means[:, 0].astype(np.float64), noun=noun)
        plot_values["plot"] = encode_uri("image/png", plot.read_bytes())
    elif task in PLOTS:
        counts = np.zeros((len(names), len(names)), dtype=np.int64)  # counts by true and predicted class
        np.add.at(counts, (head.labels, head.means.argmax(axis=1)), 1)
        draw_confusion(plot, counts, names, noun=noun)
        support = counts.sum(axis=1)  # (C,)
        pairs = [(int(i), int(j)) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
        pairs.sort(key=lambda pair: (-counts[pair], support[pair[0]]))
        confused = [(names[i], names[j], int(counts[i, j]), int(support[i])) for i, j in pairs[:20]]
        plot_values = {"plot": encode_uri("image/png", plot.read_bytes()), "confusions": confused}
    rows = [] if task == "regression" else list(enumerate(per_class(head, names)))
    rows.sort(key=lambda row: row[1]["f1"] if row[1]["videos"] else 101)  # classes without a video are last
    mistakes = []
    for index, label, predicted in worst_videos(head, names):
        video, frames = show_video(index)
        mistakes.append((video, label, predicted, frames))
    values = {"name": name, "task": task, "classes": rows, "num_classes": len(rows), "mistakes": mistakes}
    return values | plot_values


def worst_videos(head: HeadPredictions, names: Names) -> list[tuple[int, str, str]]:
    """Return number, label and output of the worst videos, by descending error or loss."""
    means = head.means.astype(np.float64)  # (V, C)
    if head.task == "regression":
        errors = np.abs(means[:, 0] - head.labels)  # (V,)
        order = [int(i) for i in np.argsort(-errors, kind="stable") if errors[i]][:MISTAKES]
        return [(i, f"{head.labels[i]:.4g}", f"{means[i, 0]:.4g}") for i in order]
    labels, chosen = head.class_flags()  # (V, C) each
    right = label_probabilities(means, head.labels, head.task)
    losses = -np.log(np.maximum(right, np.finfo(np.float32).tiny)).sum(axis=1)  # (V,)
    wrong = (labels != chosen).any(axis=1)
    order = [int(i) for i in np.argsort(-losses, kind="stable") if wrong[i]][:MISTAKES]

    def describe(i: int, flags: NDArray[np.bool_]) -> str:
        texts = [f"{names[c]} ({percent_text(100 * means[i, c])})" for c in flags[i].nonzero()[0]]
        return ", ".join(texts) or "no class"

    return [(i, describe(i, labels), describe(i, chosen)) for i in order]


def shorten_names(names: Names) -> list[str]:
    """Return names for an axis. If any is long, all are numbered, and long names lose their middle."""
    if all(len(name) <= LONGEST_NAME for name in names):
        return list(names)
    return [f"{number} {shorten(name, LONGEST_NAME - 5)}" for number, name in enumerate(names)]


def draw_confusion(path: Path, counts: NDArray[np.int64], names: Names, *, noun: str) -> None:
    """Write a PNG of (C, C) counts of videos or windows by true and predicted class, shaded by row share.

    With few classes every cell shows its count; with many the image grows so that each name is readable.
    """
    is_numbered = len(names) <= MOST_NUMBERED
    cell, points = (0.45, 9) if is_numbered else (0.1, 6)  # inches of a cell, points of the names
    side = max(cell * len(names), 3.0) + 2.5  # two classes leave room for the labels
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    axis_names = [escape_dollars(name) for name in shorten_names(names)]
    with saved_figure(path, (side + 0.5, side), points=10, framed=True) as figure:
        panel = figure.subplots()
        image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        panel.set_xticks(range(len(names)), axis_names, rotation=90, fontsize=points)
        panel.set_yticks(range(len(names)), axis_names, fontsize=points)
        panel.set(xlabel="predicted class", ylabel="true class")
        panel.set_title(f"{counts.sum()} {noun}s by true and predicted class")
        if is_numbered:
            for row, column in zip(*counts.nonzero(), strict=True):
                color = "white" if shares[row, column] > 0.5 else "black"
                count = str(counts[row, column])
                panel.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
        else:
            panel.tick_params(labeltop=True, labelright=True)  # names on all sides of a large image
        bar = figure.colorbar(image, ax=panel, fraction=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("share of the true class")


def draw_scatter(
    path: Path, labels: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]], *, noun: str
) -> None:
    """Write a PNG of predicted against true values (V,), finite and at least one, with the diagonal."""
    values = np.concatenate([labels, predicted]).astype(np.float64)  # (2 V,)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    with saved_figure(path, (6, 6)) as figure:
        panel = figure.subplots()
        alpha = 1.0 if len(labels) <= 200 else 0.3
        panel.plot(labels, predicted, "o", color=COLORS[0], markersize=5, markeredgewidth=0, alpha=alpha)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true value", ylabel="predicted value")
        panel.set_title(f"{len(labels)} {noun}s (dashed: predicted = true)", fontsize=12)
        panel.grid(alpha=0.3)
