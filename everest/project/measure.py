"""The test of a project: metrics next to baselines, timelines of recordings, all folds together.

N videos, B clips, C channels, T frames, H W pixels, P places of an image, V test videos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from everest import functions
from everest.annotations.bout import Bouts
from everest.checkpoints.describe import load_model
from everest.config.heads import MEASURED_BY, MULTI_LABEL
from everest.data.recipe_clips import evaluation_clips, labeled_samples
from everest.data.views import ClipFormat
from everest.errors import DataError
from everest.evaluation.evaluation import EvaluationFiles, evaluate_classifier
from everest.evaluation.page import PAGE, Summary, write_evaluation_page, write_pooled_page
from everest.figures.timeline import draw_timelines
from everest.inference.bouts import BoutRules
from everest.inference.scores import score_timelines
from everest.inference.timelines import STEP_AS_TRAINED, Timelines
from everest.lists.classes import Classes
from everest.lists.labels import read_class_names
from everest.lists.sample import Sample
from everest.lists.sources import read_source
from everest.metrics.head_metrics import metrics_of
from everest.metrics.intervals import bootstrap
from everest.metrics.names import METRICS
from everest.metrics.predicted import Predictions, label_array, write_predictions
from everest.models.classifier import VideoClassifier
from everest.models.spec import classifier_spec
from everest.prepare.windows import read_bouts
from everest.probes.classifiers import linear
from everest.probes.probe import difference_image
from everest.project.request import REPORT, Project, write_document
from everest.project.result import F1_KEY, MeasuredTest, TestedVideo, TimelineScores, read_outputs
from everest.system.accelerator import make_accelerator, runtime_of
from everest.system.events import Report, heading, notice, silent
from everest.system.files import IN_USE_FIX
from everest.system.run_folder import FOLDS
from everest.video.stream import VideoError

SIDE: Final = 16  # rows and columns of an image
PREDICTIONS: Final = "predictions.csv"
LINEAR: Final = "linear.csv"  # the predictions of the linear model
OUTPUTS: Final = "outputs.json"  # of both, for the pooling of folds
TIMELINE: Final = "timeline.safetensors"
FIGURE: Final = "timeline.png"
SMOOTHED: Final = (0.0, 1.0, 2.0)  # windows; defaults that are tried on the validation recordings


Summarize = Callable[[MeasuredTest], Summary]  # the beginning of the page of a test


def pool_folds(
    project: Project,
    fold_results: Sequence[MeasuredTest],
    folder: Path,
    checkpoint: Path,
    summarize: Summarize,
    report: Report,
) -> MeasuredTest:
    """The test of all folds together, with the checkpoint that learned from all videos; writes its page."""
    report_folder = folder / REPORT
    fold_folders = [folder / FOLDS / str(number) / REPORT for number in range(1, len(fold_results) + 1)]
    tested = [video for path in fold_folders for video in read_outputs(path / OUTPUTS)]
    sizes = [result.videos for result in fold_results]
    if len(tested) != sum(sizes):
        raise DataError(f"{FOLDS}: predictions of videos are missing; {IN_USE_FIX}")
    names = _class_names(project, tested)
    groups = [video.group for video in tested]
    right = np.array([video.predicted == video.label for video in tested], dtype=np.float64)  # (V,)
    interval = bootstrap(lambda counts: {"": float(np.average(right, weights=counts))}, groups)[""]
    ((frequent, most),) = Counter(video.label for video in tested).most_common(1)
    linear = [result.linear_pixels for result in fold_results if result.linear_pixels is not None]
    is_compared = len(linear) == len(fold_results)
    timelines = None
    if project.request.annotations:  # each smoothed as in its fold
        smooth = [result.timelines.smooth for result in fold_results if result.timelines]
        parts = zip((Timelines.load(path / TIMELINE) for path in fold_folders), smooth, strict=True)
        timelines = _scored([*parts], project, report_folder, report)
    pooled = MeasuredTest(
        metric="top1",
        value=round(100 * float(right.mean()), 4),
        interval=[round(100 * end, 4) for end in interval],
        chance=fold_results[0].chance,
        majority=round(100 * most / len(tested), 4),
        majority_class=names[int(frequent)],
        linear_pixels=round(float(np.average(linear, weights=sizes)), 4) if is_compared else None,
        difference=_difference(tested, "top1") if is_compared else None,
        videos=len(tested),
        groups=len(set(groups)),
        skipped=sum(result.skipped for result in fold_results),
        report=str(report_folder / PAGE),
        checkpoint=str(checkpoint),
        timelines=timelines,
        folds=fold_results,
    )
    results = {f"fold {number}": result.dump() for number, result in enumerate(fold_results, start=1)}
    write_pooled_page(
        report_folder,
        {"all folds": pooled.dump(), **results},
        [(names[int(video.label)], names[int(video.predicted)]) for video in tested],
        names=list(names.values()),
        unit="window" if project.request.annotations else "video",
        summary=summarize(pooled),
    )
    return pooled


def _class_names(project: Project, tested: Sequence[TestedVideo]) -> dict[int, str]:
    """The names of the classes by their indices, in their order; without names, the indices that occur."""
    classes = project.section.get("classes")
    if classes is not None:
        return dict(enumerate(read_class_names(Path(project.section["root"]) / classes)))
    used = {int(index) for video in tested for index in (video.label, video.predicted)}
    return {index: str(index) for index in sorted(used)}


def measure_run(
    run: Path, folder: Path, project: Project, summarize: Summarize, report: Report
) -> MeasuredTest:
    """Evaluate a run on its test list, and a linear model next to it; writes the report into `folder`.

    The timelines of annotated recordings are measured, too.
    """
    model = load_model(run)
    report_folder = folder / REPORT
    assert isinstance(model, VideoClassifier)
    train = model.recipe.train
    accelerator = make_accelerator(train.precision, tf32=train.tf32, cpu=not torch.cuda.is_available())
    evaluation, predictions = evaluate_classifier(
        model,
        classifier_spec(model.recipe, model.heads),
        model.recipe,
        runtime_of(accelerator),
        report=report,
        files=EvaluationFiles(predictions=report_folder / PREDICTIONS, overwrite=True),
    )
    metric = MEASURED_BY[model.heads[0].task]
    interval = evaluation.get("intervals", {}).get(metric)
    majority = evaluation.get("majority_top1")
    frequent = max(evaluation.get("per_class", ()), key=lambda row: row["videos"], default={})
    report(heading("a linear model on small images, to compare with"))
    baseline = linear_pixels(model, report)
    (report_folder / LINEAR).unlink(missing_ok=True)  # of an earlier project
    classes = Classes(heads=model.heads, names=model.class_names)
    if baseline is not None:
        write_predictions(report_folder / LINEAR, baseline, classes)
    difference = None
    if model.heads[0].task != MULTI_LABEL:
        tested = _tested_videos(predictions, baseline)
        write_document(report_folder / OUTPUTS, {"videos": tested})
        difference = _difference(tested, metric)
    test = MeasuredTest(
        metric=metric,
        value=evaluation[metric],
        interval=None if interval is None or None in interval else interval,
        chance=evaluation[METRICS[metric].chance or ""],
        majority=majority,
        majority_class=None if majority is None else frequent["name"],
        linear_pixels=None if baseline is None else metrics_of(baseline)[metric],
        difference=difference,
        **{key: evaluation[key] for key in ("videos", "groups", "skipped", "checkpoint")},
        report=str(report_folder / PAGE),
        timelines=score_recordings(model, project, report_folder, report),
    )
    clips = evaluation_clips(model.recipe, classes)
    write_evaluation_page(report_folder, evaluation, predictions, classes, clips, summarize(test))
    return test


def _tested_videos(predictions: Predictions, baseline: Predictions | None) -> list[TestedVideo]:
    """The test videos of a head that has one output for each of them."""
    linear = {} if baseline is None else dict(zip(baseline.videos, _outputs(baseline), strict=True))
    (head,) = predictions.by_head().values()
    labels = head.labels.tolist()
    rows = zip(predictions.videos, predictions.groups, labels, _outputs(predictions), strict=True)
    return [TestedVideo(group, label, output, linear.get(video)) for video, group, label, output in rows]


def _outputs(predictions: Predictions) -> list[float]:
    """The most likely class of each video, or its number."""
    (head,) = predictions.by_head().values()
    outputs = head.means[:, 0] if head.task == "regression" else head.means.argmax(axis=1)
    return outputs.tolist()


def _difference(tested: Sequence[TestedVideo], metric: str) -> list[float] | None:
    """The 95 % interval of how far the model is above the linear model in the metric of a video.

    None for a single group of videos that have both outputs.
    """
    compared = [video for video in tested if video.linear is not None]
    groups = [video.group for video in compared]
    if len(set(groups)) < 2:
        return None
    labels, model, linear = np.array([video[1:] for video in compared], dtype=np.float64).T  # (V,) each
    if metric == "top1":
        values = np.equal(model, labels) * 1.0 - np.equal(linear, labels)
    else:
        values = np.abs(model - labels) - np.abs(linear - labels)
    ends = bootstrap(lambda counts: {"": float(np.average(values, weights=counts))}, groups, shares=False)[""]
    return [round(100 * end if METRICS[metric].percent else end, 4) for end in ends]


def linear_pixels(model: VideoClassifier, report: Report) -> Predictions | None:
    """The test of a linear model of the mean image and the mean change of the middle clip of each video.

    Its strength is chosen on the validation list, if there is one; it then learns from both lists. None if
    all readable videos have one class.
    """
    recipe = model.recipe
    (head,) = model.heads
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
    model: VideoClassifier, project: Project, report_folder: Path, report: Report
) -> TimelineScores | None:
    """Predict the recordings of the test list, and score them; writes their timelines and a figure.

    None if the project has no recordings.
    """
    window = project.window
    if window is None:
        return None
    smooth = window
    if model.recipe.data.val is not None:
        report(heading("timelines of the validation recordings, to choose how much to smooth"))
        validated = _timelines(model, "val", window, report)
        labeled = labeled_bouts(validated, project)
        accuracies = {}
        for seconds in (window * windows for windows in SMOOTHED):
            bouts = validated.bouts(BoutRules(smooth=seconds))
            scores = score_timelines(validated, bouts, labeled, report=silent)
            accuracies[seconds] = scores["frame_accuracy"]
        smooth = max(accuracies, key=accuracies.__getitem__)
    report(heading(f"timelines of the test recordings, smoothed over {smooth:g} s"))
    timelines = _timelines(model, "test", window, report)
    timelines.save(report_folder / TIMELINE)
    scores = _scored([(timelines, smooth)], project, report_folder, report)
    return replace(scores, timeline=str(report_folder / TIMELINE))


def _scored(
    parts: Sequence[tuple[Timelines, float]], project: Project, report_folder: Path, report: Report
) -> TimelineScores:
    """The scores of the bouts of timelines, with the seconds to smooth each over; draws their figure."""
    timelines = replace(parts[0][0], videos=[video for part, _ in parts for video in part.videos])
    bouts = [recording for part, smooth in parts for recording in part.bouts(BoutRules(smooth=smooth))]
    labeled = labeled_bouts(timelines, project)
    scores = score_timelines(timelines, bouts, labeled, report=report)
    draw_timelines(report_folder / FIGURE, timelines, bouts, labeled)
    return TimelineScores(
        **{key: scores[key] for key in ("frame_accuracy", "majority_accuracy", "mean_class_accuracy")},
        f1=scores[F1_KEY],
        recordings=[recording.video for recording in timelines.videos],
        figure=str(report_folder / FIGURE),
        smooth=median(smooth for _, smooth in parts),
    )


def labeled_bouts(timelines: Timelines, project: Project) -> Bouts:
    """The bouts of a person for each recording, by its path."""
    annotations = list(map(Path, project.request.annotations))
    paths = [video.path for video in timelines.videos]
    return read_bouts(annotations, paths, silent, whose=project.request.whose).bouts


def _timelines(model: VideoClassifier, key: str, window: float, report: Report) -> Timelines:
    """The timelines of the recordings of a list."""
    samples = read_source(model.recipe.data, key, labeled=False).samples
    paths = list(dict.fromkeys(sample.path for sample in samples))
    return functions.timeline(model, paths, window=window, step=STEP_AS_TRAINED * window, report=report)
