"""The test of a project: metrics next to baselines, timelines of recordings, all folds together.

N videos, B clips, C channels, T frames, H W pixels, P places of an image.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from everest import functions
from everest.annotations.bout import Bout
from everest.checkpoints.describe import load_model
from everest.config.heads import MEASURED_BY
from everest.data.recipe_clips import labeled_samples
from everest.data.views import ClipFormat
from everest.errors import DataError
from everest.evaluation.report import PAGE, add_summary, write_pooled_report
from everest.figures.timeline import draw_timelines
from everest.inference.bouts import BoutRules
from everest.inference.scores import score_timelines
from everest.inference.timelines import STEP_AS_TRAINED, Timelines
from everest.lists.classes import Classes
from everest.lists.labels import read_class_names
from everest.lists.reading import read_unlabeled
from everest.lists.sample import Sample
from everest.lists.sources import read_source
from everest.metrics.intervals import bootstrap
from everest.metrics.metrics import measure
from everest.metrics.names import METRICS
from everest.metrics.predicted import Predictions, label_array, write_predictions
from everest.models.classifier import VideoClassifier
from everest.prepare.split import group_of
from everest.prepare.windows import read_bouts
from everest.probes.classifiers import linear
from everest.probes.probe import difference_image
from everest.project.request import REPORT, RESULT, write_document
from everest.project.verdict import answers
from everest.system.events import Report, heading, notice, silent
from everest.system.files import IN_USE_FIX
from everest.system.run_folder import FINETUNE, FOLDS
from everest.system.text import read_own_json, reading_own
from everest.video.stream import VideoError

SIDE: Final = 16  # rows and columns of an image
PREDICTIONS: Final = "predictions.csv"
LINEAR: Final = "linear.csv"  # the predictions of the linear model
OF_EACH: Final = {"top1": "correct", "mae": "error"}  # columns whose mean size is the metric
TIMELINE: Final = "timeline.safetensors"
FIGURE: Final = "timeline.png"
SCORES: Final = ("frame_accuracy", "majority_accuracy", "mean_class_accuracy", "f1@50")
PAGE_OF_FOLD: Final = f"../{FOLDS}/{{}}/{REPORT}/{PAGE}"  # from the page of all folds
POOLED: Final = f"../../../{REPORT}/{PAGE}"  # the page of all folds, from that of a fold
SMOOTHED: Final = (0.0, 1.0, 2.0)  # windows; our choice of those that are tried on the validation recordings


def measure_folds(
    project: dict[str, Any], folder: Path, finetune: Callable[[Path, Sequence[str]], Path], report: Report
) -> dict[str, Any]:
    """Train and test the remaining folds, and write a page of them all; returns the metrics over all folds.

    Args:
        project: the document of project.json.
        folder: of the project.
        finetune: trains in a folder, with some more overrides.
    """
    annotations = project["request"]["annotations"]
    rows, pages = [], []
    for number, lists in enumerate(project["folds"], start=1):
        of_fold = folder / FOLDS / str(number)
        if not (of_fold / RESULT).exists():
            fold = f"fold {number} of {len(project['folds'])}"
            report(heading(fold))
            named = [f"data.{name}={json.dumps(path)}" for name, path in lists.items()]
            measured = measure_run(finetune(of_fold / FINETUNE, named), of_fold, project, report)
            lines = [f"{fold.capitalize()}:", *answers(measured)]
            links = {"The verdict on all folds": POOLED}
            add_summary(Path(measured["report"]), lines, measured.get("figure"), links)
            write_document(of_fold / RESULT, measured)
        with reading_own(of_fold / RESULT, fix="remove it"):
            row = read_own_json(of_fold / RESULT, fix="remove it")
            _ = answers(row), row["skipped"], annotations and row["smooth"]  # all that is read of it
        rows.append(row)
        pages.append(of_fold / REPORT)
    pooled = _pooled(project, rows, pages)
    if annotations:
        rules = [BoutRules(smooth=row["smooth"]) for row in rows]
        timelines = [Timelines.load(page / TIMELINE) for page in pages]
        bouts = chain(*(each.bouts(rule) for each, rule in zip(timelines, rules, strict=True)))
        together = replace(timelines[0], videos=[video for each in timelines for video in each.videos])
        pooled |= _scored(together, [*bouts], annotations, folder / REPORT, report)
        pooled["smooth"] = median(rule.smooth for rule in rules)
    results = {"all folds": pooled} | {f"fold {number}": row for number, row in enumerate(rows, start=1)}
    pairs = [(row["label"], row["predicted"]) for page in pages for row in _read_rows(page / PREDICTIONS)]
    unit = "window" if annotations else "video"
    classes = project["section"].get("classes")
    if classes is None:  # numbers, which as text are in another order
        names = sorted({name for pair in pairs for name in pair}, key=lambda name: (len(name), name))
    else:
        names = read_class_names(Path(project["section"]["root"]) / classes)
    page = write_pooled_report(folder / REPORT, results, pairs, names=names, unit=unit)
    return {**pooled, "report": str(page), "folds": rows}


def _pooled(project: dict[str, Any], rows: Sequence[dict[str, Any]], pages: Sequence[Path]) -> dict[str, Any]:
    """The accuracy over the test videos of all folds, with its interval over their groups.

    Args:
        rows: the documents of the folds.
        pages: their folders of predictions.
    """
    root = Path(project["section"]["root"])
    samples = [read_unlabeled(Path(lists["test"]), root=root).samples for lists in project["folds"]]
    group = {sample.video_id: group_of(sample) for sample in chain(*samples)}
    predictions = [row for page in pages for row in _read_rows(page / PREDICTIONS)]
    if len(predictions) != sum(row["videos"] for row in rows):
        raise DataError(f"{FOLDS}: predictions of videos are missing; {IN_USE_FIX}")
    groups = [group[row["video"]] for row in predictions]
    right = np.array([row["correct"] == "1" for row in predictions], dtype=np.float64)
    interval = bootstrap(lambda counts: {"top1": float(np.average(right, weights=counts))}, groups)["top1"]
    ((frequent, most),) = Counter(row["label"] for row in predictions).most_common(1)
    linear, weights = [row["linear_pixels"] for row in rows], [row["videos"] for row in rows]
    return {
        "top1": round(100 * float(right.mean()), 4),
        "metric": "top1",
        "interval": [round(100 * end, 4) for end in interval],
        "chance": rows[0]["chance"],
        "majority": round(100 * most / len(predictions), 4),
        "majority_class": frequent,
        "linear_pixels": None if None in linear else round(float(np.average(linear, weights=weights)), 4),
        "difference": _difference(pages, "top1", group),
        "videos": len(predictions),
        "groups": len(set(groups)),
        "skipped": sum(row["skipped"] for row in rows),
    }


def measure_run(run: Path, folder: Path, project: dict[str, Any], report: Report) -> dict[str, Any]:
    """Evaluate a run on its test list, and a linear model next to it; writes a page into `folder`.

    The timelines of annotated recordings are measured, too.

    Args:
        project: the document of project.json.
    Returns:
        The metric of the task by its name, in percent unless it is an error of numbers: `interval` of 95 %,
        `chance`, `majority` (always the most frequent class of the test list, `majority_class`),
        `linear_pixels`, and `difference`, the 95 % interval of the difference from the linear model by
        video. None stands for what a task or a list does not have.
    """
    model, page = load_model(run), folder / REPORT
    assert isinstance(model, VideoClassifier)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    predictions = page / PREDICTIONS
    evaluation = functions.evaluate(model, page=page, predictions=predictions, overwrite=True, report=report)
    metric = MEASURED_BY[model.heads[0].task]
    majority, interval = evaluation.get("majority_top1"), evaluation.get("intervals", {}).get(metric)
    frequent = max(evaluation.get("per_class", ()), key=lambda row: row["videos"], default={})
    report(heading("a linear model on small images, to compare with"))
    linear, difference = linear_pixels(model, report), None
    (page / LINEAR).unlink(missing_ok=True)  # of an earlier project
    if linear is not None:
        write_predictions(page / LINEAR, linear, Classes(heads=model.heads, names=model.class_names))
        group = dict(zip(linear.videos, linear.groups, strict=True))
        difference = _difference([page], metric, group)
    measured = {
        metric: evaluation[metric],
        "metric": metric,
        "interval": None if interval is None or None in interval else interval,
        "chance": evaluation[METRICS[metric].chance or ""],
        "majority": majority,
        "majority_class": None if majority is None else frequent["name"],
        "linear_pixels": None if linear is None else measure(linear)[metric],
        "difference": difference,
        **{key: evaluation[key] for key in ("videos", "groups", "skipped", "report", "checkpoint")},
    }
    if project["window"] is not None:
        annotations = project["request"]["annotations"]
        measured |= score_recordings(model, page, annotations, project["window"], report)
    return measured


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file of predictions, one for each video."""
    with reading_own(path, fix=IN_USE_FIX), path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _difference(pages: Sequence[Path], metric: str, group: Mapping[str, str]) -> list[float] | None:
    """The 95 % interval of how far the model is above the linear model in the metric of a video.

    None if single videos do not have the metric, if a page has no linear model, and for a single group.

    Args:
        group: of each video.
    """
    column = OF_EACH.get(metric)
    if column is None or not all((page / LINEAR).exists() for page in pages):
        return None
    differences: dict[str, float] = {}
    for page in pages:
        linear = {row["video"]: abs(float(row[column])) for row in _read_rows(page / LINEAR)}
        own = {row["video"]: abs(float(row[column])) for row in _read_rows(page / PREDICTIONS)}
        differences |= {video: own[video] - linear[video] for video in own if video in linear}
    groups, values = [group[video] for video in differences], np.array(list(differences.values()))  # (V,)
    if len(set(groups)) < 2:
        return None
    mean = bootstrap(lambda counts: {"": float(np.average(values, weights=counts))}, groups, shares=False)
    return [round(100 * end if METRICS[metric].percent else end, 4) for end in mean[""]]


def linear_pixels(model: VideoClassifier, report: Report) -> Predictions | None:
    """The test of a linear model of the mean image and the mean change of the middle clip of each video.

    Its strength is chosen on the validation list, if there is one; it then learns from both lists. None if
    all readable videos have one class.
    """
    recipe, (head,) = model.recipe, model.heads
    train, test, classes = labeled_samples(recipe)
    val: Sequence[Sample] = ()
    if recipe.data.val is not None:
        val = read_source(recipe.data, "val", labeled=True, classes=classes).samples
    learned, chosen_on, tested = (_images(samples, model.clip, report) for samples in (train, val, test))
    learned |= chosen_on
    labels = label_array([sample.labels[0] for sample in learned], head)
    if not tested or len(np.unique(labels, axis=0)) < 2:
        return None
    outputs = linear(
        np.stack(list(learned.values())),
        labels,
        np.stack(list(tested.values())),
        head,
        seed=recipe.train.seed,
        chosen_on=np.array([sample in chosen_on for sample in learned]) if chosen_on else None,
    )
    return Predictions(
        videos=[sample.video_id for sample in tested],
        labels=[sample.labels for sample in tested],
        outputs=outputs[:, None],
        skipped=[],
        heads=(head,),
        groups=[sample.source for sample in tested],
    )


def _images(samples: Sequence[Sample], clip: ClipFormat, report: Report) -> dict[Sample, NDArray[np.float32]]:
    """The images (2 P) of each readable video: its mean, and its mean change from frame to frame."""
    images = {}
    for number, sample in enumerate(samples, start=1):
        try:
            frames = clip.read(sample)[None]  # (1, C, T, H, W) uint8
        except VideoError as error:
            report(notice(f"skipped {error}"))
            continue
        mean = F.adaptive_avg_pool2d(frames.float().mean(dim=(1, 2)), SIDE).flatten(1)
        images[sample] = torch.cat([mean, difference_image(frames, SIDE)], dim=1)[0].numpy()
        report({"event": "video", "done": number, "videos": len(samples)})
    return images


def score_recordings(
    model: VideoClassifier, folder: Path, annotations: Sequence[str], window: float, report: Report
) -> dict[str, Any]:
    """Predict the recordings of the test list, and score them; writes their timelines and a figure.

    Args:
        window: seconds.
    Returns:
        What `_scored` returns; `smooth`, the seconds over which probabilities are averaged; and the file
        `timeline`.
    """
    smooth = window
    if model.recipe.data.val is not None:
        report(heading("timelines of the validation recordings, to choose how much to smooth"))
        validated, accuracies = _timelines(model, "val", window, report), {}
        labeled = labeled_bouts(validated, annotations)
        for seconds in (window * windows for windows in SMOOTHED):
            bouts = validated.bouts(BoutRules(smooth=seconds))
            scores = score_timelines(validated, bouts, labeled, report=silent)
            accuracies[seconds] = scores["frame_accuracy"]
        smooth = max(accuracies, key=accuracies.__getitem__)
    report(heading(f"timelines of the test recordings, smoothed over {smooth:g} s"))
    timelines = _timelines(model, "test", window, report)
    timelines.save(folder / TIMELINE)
    scored = _scored(timelines, timelines.bouts(BoutRules(smooth=smooth)), annotations, folder, report)
    return scored | {"smooth": smooth, "timeline": str(folder / TIMELINE)}


def _scored(
    timelines: Timelines, bouts: Sequence[Any], annotations: Sequence[str], folder: Path, report: Report
) -> dict[str, Any]:
    """The `SCORES` of the bouts of timelines, the `recordings`, and the file `figure`, which is drawn."""
    labeled = labeled_bouts(timelines, annotations)
    scores = score_timelines(timelines, bouts, labeled, report=report)
    draw_timelines(folder / FIGURE, timelines, bouts, labeled)
    recordings = [recording.video for recording in timelines.videos]
    return {key: scores[key] for key in SCORES} | {"recordings": recordings, "figure": str(folder / FIGURE)}


def labeled_bouts(timelines: Timelines, annotations: Sequence[str]) -> Mapping[str, Sequence[Bout]]:
    """The bouts of a person for each recording, by its path."""
    return read_bouts(list(map(Path, annotations)), [video.path for video in timelines.videos], silent)


def _timelines(model: VideoClassifier, key: str, window: float, report: Report) -> Timelines:
    """The timelines of the recordings of a list."""
    samples = read_source(model.recipe.data, key, labeled=False).samples
    paths = list(dict.fromkeys(sample.path for sample in samples))
    return functions.timeline(model, paths, window=window, step=STEP_AS_TRAINED * window, report=report)
