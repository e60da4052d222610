"""The accuracy of an exported file, which sees one view of a video, beside that of `everest train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from everest.checkpoints.graph import GraphPrecision, make_graph
from everest.checkpoints.graph_files import read_int8_clips, write_onnx
from everest.checkpoints.load import find_weights, open_model
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.evaluation.evaluation import EvaluationFiles, evaluate_classifier, open_classifier
from everest.lists.sample import Sample
from everest.lists.sources import seen_in
from everest.metrics.head_metrics import compute_metrics
from everest.metrics.names import METRICS, value_text
from everest.metrics.predictions import Predictions
from everest.project.measure import find_interval
from everest.project.request import RESULT
from everest.project.result import ProjectResult
from everest.project.verdict import format_interval, list_results
from everest.system.compute import Runtime
from everest.system.events import Report, heading, ignore_event, warning
from everest.system.files import IN_USE_FIX
from everest.system.run_folder import FOLDS_FOLDER, MODEL_FOLDER, PROJECT_FILE, RECIPE_FILE
from everest.system.text import plural


@dataclass(frozen=True, kw_only=True)
class ExportedAccuracy:
    """The metric of a project's task on its test videos, before and after the export."""

    metric: str
    trained: float  # as `everest train` reports it
    trained_views: int  # of a video
    exported: float | None  # of the file, with `folds` of a file for each; None: equal to `trained`
    interval: list[float] | None  # 95 %, of `exported`
    checkpoint: float | None  # of the same models before the export, on 1 view; None: not measured
    videos: int  # of the test
    folds: int  # 0: the project has a test list

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        name, videos = metric.title, plural(self.videos, "test video")
        views = plural(self.trained_views, "view")
        folds = f" in {plural(self.folds, 'fold')}" if self.folds else ""
        trained = f"{name} of train {value_text(self.metric, self.trained)} ({views} of {videos}{folds})"
        if self.exported is None:
            return f"{trained}; the file has the outputs of the model, which has learned from all videos"
        files = "a file for each fold, exported in the same way," if self.folds else "the file"
        exported = value_text(self.metric, self.exported)
        text = f"{trained}, of {files} {exported}{format_interval(self.interval)} on 1 view"
        if self.checkpoint is None:
            return text
        models = "the same models" if self.folds else "the model"
        change = f"{self.exported - self.checkpoint:+.3g}{' points' if metric.is_percent else ''}"
        before = value_text(self.metric, self.checkpoint)
        return f"{text}; {models} before the export {before} ({change})"


def read_project_result(weights: Path) -> ProjectResult | None:
    """The result of the finished project whose delivered model `weights` are; None: of no such project."""
    folder = weights.parent.parent
    has_project = all((folder / name).is_file() for name in (PROJECT_FILE, RESULT))
    if weights.parent.name != MODEL_FOLDER or not has_project:
        return None
    return ProjectResult.read(folder / RESULT, fix=IN_USE_FIX)


def make_card_lines(result: ProjectResult) -> list[str]:
    """The accuracy that `everest train` reported, for a model card."""
    tested = f"in {len(result.folds)} folds; this model has learned from all videos" if result.folds else ""
    return [f"- {line}" for line in (f"tested by `everest train` {tested}".strip(), *list_results(result))]


def measure_exported_accuracy(
    file: Path,
    weights: Path,
    report: Report,
    *,
    precision: GraphPrecision = "fp32",
    keep: float | None = None,
    calibrated: Sequence[Sample] = (),
) -> ExportedAccuracy | None:
    """Evaluate an ONNX file on one view of each test video of the project that `weights` are of.

    With folds, the model of the file has learned from all videos: the models of the folds are exported in the
    same way, and each file is tested on the videos of its fold.

    Args:
        precision: of the file, and `keep` its ratio of tokens, see `everest.checkpoints.graph.make_graph`.
        calibrated: the videos from which the scales of a file in int8 come.
    Returns:
        None if the weights are not the model of a finished project.
    """
    result = read_project_result(weights)
    if result is None:
        return None
    recipe = load_recipe(weights.parent / RECIPE_FILE)
    views = recipe.eval.clips * recipe.eval.crops
    parts = []  # the predictions of a file, and of its checkpoint if the outputs differ
    if recipe.data.test is not None:
        report(heading("accuracy of the file on one view of each test video"))
        sources = [file] if (precision, keep) == ("fp32", None) else [file, weights]
        parts.append([_predict(source, recipe, report) for source in sources])
        if shared := seen_in(recipe.data, "test", calibrated):
            share = f"{len(shared)} of {plural(len(calibrated), 'calibration clip')}"
            fix = f"--calibrate {Path(recipe.data.root, recipe.data.train or '')}"
            report(warning(f"{share} are test videos, so the accuracy may be too high; use {fix}"))
    elif result.folds and (precision, views, keep) != ("fp32", 1, None):
        for number in range(1, len(result.folds) + 1):
            report(heading(f"fold {number} of {len(result.folds)}: export and test"))
            model = find_weights(weights.parent.parent / FOLDS_FOLDER / str(number) / MODEL_FOLDER)
            parts.append(_predict_folds(model, precision, keep, report))
    measured: list[dict[str, Any]] = []
    for predictions in map(Predictions.joined, zip(*parts, strict=True)):
        measured.append(compute_metrics(predictions, intervals=len(set(predictions.groups)) > 1))
    values, before = [*measured, {}, {}][:2]
    return ExportedAccuracy(
        metric=result.metric,
        trained=result.value,
        trained_views=views,
        exported=values.get(result.metric),
        interval=find_interval(values, result.metric),
        checkpoint=before.get(result.metric),
        videos=result.videos,
        folds=len(result.folds),
    )


def _predict_folds(
    weights: Path, precision: GraphPrecision, keep: float | None, report: Report
) -> list[Predictions]:
    """The predictions of a file of a fold's model, calibrated on its training videos, and of the model."""
    opened, recipe = open_model(weights, kind="clips"), load_recipe(weights.parent / RECIPE_FILE)
    clips = None
    if precision == "int8":
        clips = read_int8_clips(opened, Path(recipe.data.root, recipe.data.train or ""), ignore_event)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "fold.onnx"
        write_onnx(file, make_graph(opened, keep=keep, precision=precision), clips=clips)
        return [_predict(source, recipe, report) for source in (file, weights)]


def _predict(file: Path, recipe: Recipe, report: Report) -> Predictions:
    """The predictions of an ONNX file or a checkpoint for one view of each test video."""
    recipe = replace(recipe, eval=replace(recipe.eval, clips=1, crops=1))
    model, spec, recipe = open_classifier(file, recipe, saved_selection=False, report=ignore_event)
    runtime = Runtime(torch.device("cpu"), "fp32")
    return evaluate_classifier(model, spec, recipe, runtime, report=report, files=EvaluationFiles())[1]
