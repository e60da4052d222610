"""The test of a project: the selected model and the other candidates, timelines, all folds.

V test videos, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np

from everest.config.heads import METRIC_OF_TASK, Heads
from everest.data.clip_dataset import ClipDataset
from everest.data.recipe_clips import evaluation_dataset
from everest.errors import DataError
from everest.evaluation.evaluation import EvaluationFiles, evaluate_classifier
from everest.evaluation.page import PAGE
from everest.inference.opened_model import OpenedModel
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.lists.sources import read_source
from everest.metrics.class_metrics import class_tests
from everest.metrics.difference import estimate_difference
from everest.metrics.head_metrics import compute_metrics, find_chance
from everest.metrics.names import METRICS
from everest.metrics.predictions import Predictions, write_predictions
from everest.models.classifier import Classifier
from everest.system.events import heading, ignore_event
from everest.system.files import IN_USE_FIX
from everest_workflows.project.alarm_rates import draw_alarms, find_clip_seconds, measure_alarms
from everest_workflows.project.candidates import MEAN, Candidate, FeatureTable
from everest_workflows.project.choice import BestCandidate
from everest_workflows.project.comparison import Comparison
from everest_workflows.project.feature_kinds import IMAGES
from everest_workflows.project.request import REPORT, write_document
from everest_workflows.project.result import (
    F1_KEY,
    CandidateTest,
    ClassTest,
    MeasuredTest,
    TestOutputs,
    TimelineScores,
)
from everest_workflows.recordings.api import timeline
from everest_workflows.recordings.bouts import BoutRules
from everest_workflows.recordings.project_folder import FOLDS_FOLDER, SELECTED
from everest_workflows.recordings.scores import score_timelines
from everest_workflows.recordings.timeline_figure import draw_timelines
from everest_workflows.recordings.timelines import STEP_AS_TRAINED, Timelines
from everest_workflows.recordings.window_labels import read_bouts

PREDICTIONS: Final = "predictions.csv"
LINEAR_FILE: Final = "linear.csv"  # the predictions of the linear model on small images
OUTPUTS: Final = "outputs.json"  # of all candidates, for the pooling of folds
TIMELINE: Final = "timeline.safetensors"
FIGURE: Final = "timeline.png"
ALARM_FIGURE: Final = "alarms.png"


class PageData(NamedTuple):
    """What the page of a test shows below its summary; see `everest.evaluation.page`."""

    result: dict[str, Any]
    predictions: Predictions
    classes: Classes
    dataset: ClipDataset


def measure_candidates(
    comparison: Comparison,
    table: FeatureTable,
    model: Classifier,
    candidates: Sequence[Candidate],
    choice: BestCandidate,
) -> tuple[MeasuredTest, PageData]:
    """Evaluate the model of the chosen candidate on the test list, beside all others; writes its report.

    The timelines of annotated recordings are measured, too. A linear model is tested with the features of the
    table, which are those that it would compute.
    """
    project, emit = comparison.project, comparison.emit
    report_folder = comparison.output / REPORT
    emit(heading(f"test of the best candidate, {choice.name}"))
    files = EvaluationFiles(predictions=report_folder / PREDICTIONS, overwrite=True)
    runtime = OpenedModel.of(model).runtime
    members = [candidate for candidate in candidates if candidate.name in choice.members]
    known = None
    if not any(member.reads_views for member in members):
        known = partial(_predict_linear, members, table, model.heads)
    evaluation, predictions = evaluate_classifier(
        model, model.spec, model.recipe, runtime, emit=emit, files=files, cached_predictions=known
    )
    (head,) = model.heads
    outputs = _predict_all(candidates, choice, comparison.samples["test"], predictions)
    write_document(report_folder / OUTPUTS, asdict(outputs))
    classes = Classes(heads=model.heads, names=model.class_names)
    write_predictions(report_folder / LINEAR_FILE, outputs.predictions(IMAGES, head), classes)
    metric = METRIC_OF_TASK[head.task]
    test = MeasuredTest(
        warnings=() if project.folds else project.warnings,
        **measure_outputs(outputs, model, choice, intervals=not project.folds),  # else of all folds
        **({} if project.folds else measure_test_alarms(comparison, model, outputs)),
        value=evaluation[metric],
        interval=find_interval(evaluation, metric),
        **{key: evaluation[key] for key in ("videos", "groups", "skipped", "checkpoint")},
        report=str(report_folder / PAGE),
        timelines=score_recordings(comparison, model),
    )
    return test, PageData(evaluation, predictions, classes, evaluation_dataset(model.recipe, classes))


def _predict_linear(
    members: Sequence[Candidate], table: FeatureTable, heads: Heads, dataset: ClipDataset
) -> Predictions:
    """The mean outputs of linear candidates for the samples of a dataset."""
    readable = table.readable(dataset.samples)
    rows = [member.predict(readable) for member in members]
    outputs = [np.mean([by_video[sample.video_id] for by_video in rows], axis=0) for sample in readable]
    unread = [sample for sample in dataset.samples if sample.video_id in table.unreadable]
    assert len(readable) + len(unread) == len(dataset.samples)  # the table has all lists
    no_outputs = np.zeros((0, sum(head.outputs for head in heads)), np.float32)
    return Predictions(
        videos=[sample.video_id for sample in readable],
        labels=[sample.labels for sample in readable],
        outputs=np.array([*outputs] or no_outputs, np.float32)[:, None],  # a view: the center
        skipped=[(sample.video_id, table.unreadable[sample.video_id]) for sample in unread],
        heads=heads,
        groups=[sample.group_or_path for sample in readable],
    )


def _predict_all(
    candidates: Sequence[Candidate], choice: BestCandidate, samples: Sequence[Sample], selected: Predictions
) -> TestOutputs:
    """The outputs of all candidates, and of the selected model, for samples that all can read."""
    by_video = {candidate.name: candidate.predict(samples) for candidate in candidates}
    if choice.mean_of:
        first, second = (by_video[name] for name in choice.mean_of)
        both = [video for video in first if video in second]
        by_video[MEAN] = {video: (first[video] + second[video]) / np.float32(2) for video in both}
    by_video[SELECTED] = dict(zip(selected.videos, selected.outputs.mean(axis=1), strict=True))
    tested = [sample for sample in samples if all(sample.video_id in rows for rows in by_video.values())]
    videos = [sample.video_id for sample in tested]
    return TestOutputs(
        videos=videos,
        groups=[sample.group_or_path for sample in tested],
        labels=[sample.labels[0] for sample in tested],
        dropped=len(selected.videos) - len(tested),
        outputs={name: [rows[video].tolist() for video in videos] for name, rows in by_video.items()},
    )


def measure_outputs(
    outputs: TestOutputs, model: Classifier, choice: BestCandidate, *, intervals: bool = True
) -> dict[str, Any]:
    """The fields of a MeasuredTest that follow from the outputs of all candidates, with their intervals."""
    classes = Classes(heads=model.heads, names=model.class_names)
    (head,) = classes.heads
    metric = METRIC_OF_TASK[head.task]
    names = [name for name in outputs.outputs if name != SELECTED]
    several = intervals and len(set(outputs.groups)) > 1
    tests = {}
    for name in names:
        values = compute_metrics(outputs.predictions(name, head), intervals=several)
        tests[name] = CandidateTest(
            name=name,
            metric=metric,
            validation=choice.validation.get(name),
            test=values[metric],
            interval=find_interval(values, metric),
        )
    selected = outputs.predictions(SELECTED, head)
    difference = None
    if IMAGES in tests and several and METRICS[metric].chance:
        chosen, images = (outputs.predictions(name, head).by_head()[""] for name in (SELECTED, IMAGES))
        difference = estimate_difference(chosen, images, outputs.groups)
    (tested,) = selected.by_head().values()
    behaviors = []
    if head.task != "regression":
        groups = outputs.groups if several else None
        behaviors = [ClassTest(**row) for row in class_tests(tested, classes.names_of_head(head), groups)]
    is_single = head.task == "single-label"
    return {
        "frames": model.recipe.data.frames,
        "metric": metric,
        "chance": find_chance(metric, (head,), selected.labels),
        "majority": find_chance("majority_top1", (head,), selected.labels),
        "majority_class": classes.name(int(np.bincount(tested.labels).argmax())) if is_single else None,
        "linear_pixels": tests[IMAGES].test if IMAGES in tests else None,
        "difference": difference,
        "candidates": list(tests.values()),
        "behaviors": behaviors,
        "chosen": choice.name,
        "members": list(choice.members),
        "reason": choice.explanation,
    }


def measure_test_alarms(comparison: Comparison, model: Classifier, outputs: TestOutputs) -> dict[str, Any]:
    """The fields of a MeasuredTest about alarms, none without --normal; draws their figure."""
    (head,) = model.heads
    if head.alarm is None:
        return {}
    names = Classes(heads=model.heads, names=model.class_names).names_of_head(head)
    (head_predictions,) = outputs.predictions(SELECTED, head).by_head().values()
    seconds = find_clip_seconds(comparison.project.window, comparison.recipe.data)
    figure = comparison.output / REPORT / ALARM_FIGURE
    rows = measure_alarms(head_predictions, names, outputs.groups, head.alarm, seconds)
    draw_alarms(figure, head_predictions, names, head.alarm, rows, seconds)
    return {
        "alarms": rows,
        "alarm_seconds": seconds,
        "alarm_figure": str(figure),
        "normal": head.alarm.normal,
        "threshold": head.alarm.threshold,
    }


def find_interval(values: Mapping[str, Any], metric: str) -> list[float] | None:
    """The interval of a metric among the values of `compute_metrics`; None if it has none."""
    interval = values.get("intervals", {}).get(metric)
    return None if interval is None or None in interval else interval


def pool_outputs(folder: Path, fold_results: Sequence[MeasuredTest]) -> TestOutputs:
    """The outputs of the candidates of all folds for their test videos."""
    parts = [TestOutputs.read(path / OUTPUTS) for path in _list_fold_reports(folder, fold_results)]
    outputs = TestOutputs.joined(parts)
    if len(outputs.videos) + outputs.dropped != sum(result.videos for result in fold_results):
        raise DataError(f"{FOLDS_FOLDER}: predictions of videos are missing; {IN_USE_FIX}")
    return outputs


def _list_fold_reports(folder: Path, fold_results: Sequence[MeasuredTest]) -> list[Path]:
    return [folder / FOLDS_FOLDER / str(number) / REPORT for number in range(1, len(fold_results) + 1)]


def pool_folds(
    comparison: Comparison,
    model: Classifier,
    choice: BestCandidate,
    outputs: TestOutputs,
    fold_results: Sequence[MeasuredTest],
) -> tuple[MeasuredTest, PageData]:
    """The test of all folds together, with the chosen model, which learned from all videos."""
    project, folder = comparison.project, comparison.folder
    (head,) = model.heads
    classes = Classes(heads=model.heads, names=model.class_names)
    report_folder = folder / REPORT
    timelines = None
    if project.request.annotations:  # each smoothed as in its fold
        saved = [Timelines.load(path / TIMELINE) for path in _list_fold_reports(folder, fold_results)]
        timelines = _score(saved, comparison)
    selected = outputs.predictions(SELECTED, head)
    metrics = compute_metrics(selected, intervals=True)
    metric = METRIC_OF_TASK[head.task]
    pooled = MeasuredTest(
        warnings=project.warnings,
        **measure_outputs(outputs, model, choice),
        **measure_test_alarms(comparison, model, outputs.mean_of(choice.members)),
        value=metrics[metric],
        interval=find_interval(metrics, metric),
        videos=len(outputs.videos),
        groups=len(set(outputs.groups)),
        skipped=sum(result.skipped for result in fold_results),
        report=str(report_folder / PAGE),
        checkpoint=str(model.file),
        timelines=timelines,
        folds=fold_results,
    )
    document = metrics | {key: getattr(pooled, key) for key in ("videos", "groups", "skipped")}
    tested = replace(model.recipe, data=replace(model.recipe.data, test=model.recipe.data.train))
    return pooled, PageData(document, selected, classes, evaluation_dataset(tested, classes))


def score_recordings(comparison: Comparison, model: Classifier) -> TimelineScores | None:
    """Predict the recordings of the test list, and score them; writes their timelines and a figure.

    Probabilities are averaged over a window. None if the project has no recordings.
    """
    window, report_folder = comparison.project.window, comparison.output / REPORT
    if window is None:
        return None
    comparison.emit(heading(f"timelines of the test recordings, smoothed over {window:g} s"))
    samples = read_source(model.recipe.data, "test", labeled=False).samples
    paths = list(dict.fromkeys(sample.path for sample in samples))
    predicted = timeline(model, paths, window=window, step=STEP_AS_TRAINED * window, emit=comparison.emit)
    timelines = replace(predicted, rules=BoutRules(smooth=window))
    timelines.save(report_folder / TIMELINE)
    scores = _score([timelines], comparison)
    return replace(scores, timeline=str(report_folder / TIMELINE))


def _score(parts: Sequence[Timelines], comparison: Comparison) -> TimelineScores:
    """The scores of the bouts of timelines, each by its own rules; draws their figure."""
    recordings = [each for part in parts for each in zip(part.videos, part.bouts(), strict=True)]
    recordings.sort(key=lambda each: each[0].video)  # folds have another order
    timelines = replace(parts[0], videos=[video for video, _ in recordings])
    bouts = [video_bouts for _, video_bouts in recordings]
    request, paths = comparison.project.request, [video.path for video in timelines.videos]
    annotations = list(map(Path, request.annotations))
    labeled = read_bouts(annotations, paths, ignore_event, bout_filter=request.bout_filter).bouts
    groups = {each.path: each.group_or_path for samples in comparison.samples.values() for each in samples}
    scores = score_timelines(timelines, bouts, labeled, emit=comparison.emit, groups=groups)
    figure = comparison.output / REPORT / FIGURE
    draw_timelines(figure, timelines, bouts, labeled)
    names = {each.name for each in fields(TimelineScores)}
    return TimelineScores(
        **{key: value for key, value in scores.items() if key in names},
        f1=scores[F1_KEY],
        recordings=[recording.video for recording in timelines.videos],
        figure=str(figure),
        smooth=median(part.rules.smooth for part in parts),
    )
