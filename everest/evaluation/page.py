"""The page of a result: a folder with a self-contained HTML file, and its plots as separate files.

The page begins with the answer in one line beside a figure of all models, and ends with what few people need.
The plots show confusions between classes, or predicted against true numbers.

V videos, C classes; C channels, T frames, H W pixels of clips.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from everest.config.heads import MULTI_LABEL
from everest.data.clip_dataset import ClipDataset
from everest.data.views import EvalViews
from everest.evaluation.plots import LONGEST_NAME, MAX_NUMBERED, Names, draw_confusion, draw_scatter
from everest.figures.pages import encode_uri, write_page
from everest.figures.rows import with_three_channels
from everest.lists.classes import Classes
from everest.lists.sample import ListSize
from everest.metrics.class_metrics import class_tests, per_class
from everest.metrics.head_metrics import FEW_OF_CLASS
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import (
    METRICS,
    measurement_rows,
    metric_rows,
    name_metric,
    percent_text,
    value_text,
    views_text,
)
from everest.metrics.predictions import HeadPredictions, Predictions, label_probabilities

PAGE: Final = "index.html"
PLOTS: Final = {"single-label": "confusion", "regression": "scatter"}  # stems of file names
STRIP: Final = 480  # pixels: width of the strip of a video's three frames
MISTAKES: Final = 12  # number of mistakes shown per head
# The columns of the table of classes and their keys; the first one has intervals.
CLASS_COLUMNS: Final = {
    "single-label": {"recall": "recall", "precision": "precision", "F1": "f1"},
    MULTI_LABEL: {"average precision": "ap", "recall": "recall", "precision": "precision", "F1": "f1"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model or a baseline in the figure beside the answer."""

    name: str
    value: float
    interval: Sequence[float] | None = None  # 95 %
    is_selected: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A further result of a page: sentences, then a table beside a figure."""

    heading: str
    lines: Sequence[str] = ()
    titles: Sequence[str] = ()  # of the columns; the first one has names, the others numbers
    rows: Sequence[Sequence[str]] = ()
    figure: str | None = None  # path of a PNG


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What a page shows apart from the predictions."""

    title: str
    answer: Sequence[str]  # the result in one sentence, then what follows from it
    metric: str = ""  # of the points
    points: Sequence[Point] = ()  # one at least if there is a metric
    chance: float | None = None
    warnings: Sequence[str] = ()  # `problem; what to do`
    sections: Sequence[Section] = ()
    methods: str = ""  # sentences for a publication
    next_commands: Sequence[str] = ()  # commands
    details: Mapping[str, Sequence[str]] = field(default_factory=dict)  # sentences by their heading
    links: Mapping[str, Path] = field(default_factory=dict)  # other pages, by the text of the link
    figure: str | None = None  # path of a PNG

    @property
    def scale(self) -> float:
        """The value at the right end of the figure; the left end is 0."""
        if METRICS[self.metric].is_percent:
            return 100.0
        shown = [end for point in self.points for end in (point.value, *(point.interval or ()))]
        return 1.1 * max(*shown, self.chance or 0.0) or 1.0


def summarize_evaluation(result: Mapping[str, Any], noun: str) -> PageContent:
    """The summary of the document of `everest eval --json`."""
    checkpoint, size = result["checkpoint"], f"{result['videos']} {noun}s"
    if result["groups"] < result["videos"]:
        size += f" of {result['groups']} groups"
    answers = []
    for name, head in result.get("heads", {"": result}).items():
        title, value, interval, chance = next(metric_rows(head, name))
        answers.append(f"{title} {value}{f' (95 % CI: {interval})' if interval else ''}, chance {chance}")
    answer = f"{'; '.join(answers)}; on {size}"
    metric = next((name for name in METRICS if result.get(name) is not None), "")  # "" of several heads
    points = []
    if metric:
        ends = result.get("intervals", {}).get(metric)
        interval = None if ends is None or None in ends else ends
        points = [Point(name="this model", value=result[metric], interval=interval, is_selected=True)]
        if result.get("majority_top1") is not None:
            points.append(Point(name=METRICS["majority_top1"].title, value=result["majority_top1"]))
    return PageContent(
        title=f"Evaluation of {checkpoint}",
        answer=[answer],
        metric=metric,
        points=points,
        chance=result.get(METRICS[metric].chance or "") if metric else None,
        methods=f"{size} were classified, with {views_text(result, noun)}, whose outputs were averaged. "
        f"Result: {answer}. Software: everest {version('everest-video')}.",
        next_commands=[shlex.join(["everest", "predict", "VIDEO", "--checkpoint", checkpoint])]
        if checkpoint.endswith(".safetensors")
        else [],
    )


def write_evaluation_page(
    folder: Path,
    result: Mapping[str, Any],
    predictions: Predictions,
    classes: Classes,
    dataset: ClipDataset,
    summary: PageContent | None = None,
) -> Path:
    """Write the plots, then the page; return the path of the page.

    Args:
        result: the document of `everest eval --json`, or its metrics, `videos`, `groups` and `skipped` alone,
            which several models with the same test may have together.
        dataset: the evaluated videos; the worst videos are read again for the page.
        summary: None: that of `summarize_evaluation`.
    """
    page = folder / PAGE
    page.unlink(missing_ok=True)  # an old page must not stand beside new plots
    show_video = partial(_show_video, dataset, predictions)
    noun = ListSize.of(dataset.samples).noun
    groups = predictions.groups if len(set(predictions.groups)) > 1 else None
    heads = [
        _draw_head(folder, head, classes.names_of_head(head.head), groups, show_video, noun=noun)
        for head in predictions.by_head().values()
    ]
    summary = summary or summarize_evaluation(result, noun)
    links = {
        quote(Path(os.path.relpath(path, folder)).as_posix()): text for text, path in summary.links.items()
    }
    write_summary_page(
        page,
        summary,
        links=links,
        heads=heads,
        views=views_text(dict(result), noun) if "views" in result else "",
        metrics=list(metric_rows(dict(result))),
        facts=list(measurement_rows(dict(result), noun)),
        skipped=predictions.skipped,
        groups=result["groups"],
        unit=noun,
        sampled=f"groups of {noun}s" if result["groups"] < result["videos"] else f"{noun}s",
        few_groups=FEW_GROUPS,
        few_of_class=FEW_OF_CLASS,
        most_numbered=MAX_NUMBERED,
        longest_name=LONGEST_NAME,
    )
    return page


def write_summary_page(page: Path, summary: PageContent, **values: Any) -> None:
    """Write a page with a summary; `values` are those of predictions, which a page may lack."""
    uris = {
        each: encode_uri("image/png", Path(each).read_bytes())
        for each in (summary.figure, *(section.figure for section in summary.sections))
        if each is not None
    }
    write_page(
        page,
        "everest.evaluation",
        "page.html",
        summary=summary,
        uris=uris,
        commands=_list_commands(summary),
        metric_title=name_metric(summary.metric) if summary.metric else "",
        value_text=value_text,
        percent_text=percent_text,
        **({"heads": [], "metrics": [], "skipped": [], "links": {}} | values),
    )


def _list_commands(summary: PageContent) -> list[tuple[str, str]]:
    """The title and the text of commands; the one that made the page is unknown in a notebook."""
    program, *arguments = sys.argv
    made = [shlex.join(["everest", *arguments])] if Path(program).name == "everest" else []
    return [("This page was made by", x) for x in made] + [("Next", x) for x in summary.next_commands]


def _show_video(dataset: ClipDataset, predictions: Predictions, index: int) -> tuple[str, str]:
    """Return a video's name with its group, and three frames of its middle view as a data URL."""
    video, views = predictions.videos[index], dataset.views
    assert isinstance(views, EvalViews)
    middle = views.clips // 2 * views.crops + views.crops // 2  # the middle crop of the middle clip
    index = next(index for index, sample in enumerate(dataset.samples) if sample.video_id == video)
    view = dataset.read((0, index)).frames[middle].movedim(0, -1)  # (T, H, W, C)
    shown = sorted({0, len(view) // 2, len(view) - 1})
    frames = torch.cat([view[time] for time in shown], dim=1)  # (H, 3 W, C)
    image = Image.fromarray(with_three_channels(frames).contiguous().numpy())
    buffer = io.BytesIO()
    image.thumbnail((STRIP, STRIP))
    image.save(buffer, format="JPEG", quality=88)
    group = dataset.samples[index].group
    name = video if group is None else f"{video}, group {group}"
    return name, encode_uri("image/jpeg", buffer.getvalue())


def _draw_head(
    folder: Path,
    head: HeadPredictions,
    names: Names,
    groups: Sequence[str] | None,
    show_video: Callable[[int], tuple[str, str]],
    *,
    noun: str,
) -> Mapping[str, Any]:
    """Write the plot of a head, and return the values of its part of the page.

    `groups` are those of the videos; None: without intervals. `show_video` gives the name and the frames of a
    video by its number.
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
    rows = [] if task == "regression" else _list_classes(head, names, groups)
    mistakes = []
    for index, label, predicted in worst_videos(head, names):
        video, frames = show_video(index)
        mistakes.append((video, label, predicted, frames))
    values = {
        "name": name,
        "task": task,
        "classes": rows,
        "mistakes": mistakes,
        "has_groups": any(row["worst_group"] for row in rows),
    }
    values["columns"] = CLASS_COLUMNS.get(task, {})
    return values | plot_values


def _list_classes(head: HeadPredictions, names: Names, groups: Sequence[str] | None) -> list[dict[str, Any]]:
    """The rows of `per_class` and `class_tests`, with the number and the values at chance of each class.

    The lowest F1 comes first, and classes without a video last.
    """
    tests = {row["name"]: row for row in class_tests(head, names, groups)}
    rows = []
    for number, row in enumerate(per_class(head, names)):
        test = tests.get(row["name"], {"intervals": {}, "prevalence": 0.0})
        chance = {"precision": test["prevalence"], "ap": test["prevalence"]}
        if head.task == "single-label":  # of a guess among all classes
            chance["recall"] = guess = 100 / len(names)
            chance["f1"] = 2 * guess * test["prevalence"] / (guess + test["prevalence"])
        first = next(iter(CLASS_COLUMNS[head.task].values()))
        intervals = {**test["intervals"], first: test.get("interval")}
        own = {"number": number, "chance": chance, "worst_group": None}
        rows.append({**own, **test, **row, "intervals": intervals})
    return sorted(rows, key=lambda row: row["f1"] if row["videos"] else 101)


def worst_videos(head: HeadPredictions, names: Names) -> list[tuple[int, str, str]]:
    """Return number, label and output of the worst videos, by descending error or loss."""
    means = head.means.astype(np.float64)  # (V, C)
    if head.task == "regression":
        errors = np.abs(means[:, 0] - head.labels)  # (V,)
        order = [int(i) for i in np.argsort(-errors, kind="stable") if errors[i]][:MISTAKES]
        return [(i, f"{head.labels[i]:.4g}", f"{means[i, 0]:.4g}") for i in order]
    labels, predicted = head.class_flags()  # (V, C) each
    label_probability = label_probabilities(means, head.labels, head.task)
    losses = -np.log(np.maximum(label_probability, np.finfo(np.float32).tiny)).sum(axis=1)  # (V,)
    wrong = (labels != predicted).any(axis=1)
    order = [int(i) for i in np.argsort(-losses, kind="stable") if wrong[i]][:MISTAKES]

    def describe(i: int, flags: NDArray[np.bool_]) -> str:
        texts = [f"{names[c]} ({percent_text(100 * means[i, c])})" for c in flags[i].nonzero()[0]]
        return ", ".join(texts) or "no class"

    return [(i, describe(i, labels), describe(i, predicted)) for i in order]
