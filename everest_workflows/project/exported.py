"""The accuracy of an exported file, which sees one view of a video, beside that of `everest train`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final

import torch
from torch import Tensor

from everest.checkpoints.graph import GraphPrecision, make_graph
from everest.checkpoints.graph_files import write_test_file
from everest.checkpoints.load import find_weights, open_model
from everest.checkpoints.quantization import read_int8_clips
from everest.config.heads import METRIC_OF_TASK
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.evaluation.evaluation import EvaluationFiles, evaluate_classifier, open_classifier
from everest.lists.sample import Sample
from everest.lists.sources import seen_in
from everest.metrics.head_metrics import compute_metrics
from everest.metrics.names import METRICS, value_text
from everest.metrics.predictions import Predictions
from everest.models.clip_spec import ClipSpec
from everest.system.compute import Runtime
from everest.system.events import Report, heading, ignore_event, notice, warning
from everest.system.files import IN_USE_FIX
from everest.system.run_folder import FOLDS_FOLDER, MODEL_FOLDER, PROJECT_FILE, RECIPE_FILE
from everest.system.text import plural, time_text
from everest_workflows.project.measure import find_interval
from everest_workflows.project.request import REPORT, RESULT, write_document
from everest_workflows.project.result import ProjectResult, TestOutputs
from everest_workflows.project.verdict import format_interval, list_results

EXPORTED, BEFORE = "exported", "before"  # names of outputs of a fold: of the file, and of its checkpoint
BARELY_FASTER: Final = 0.9  # heuristic: the share of fp32's time that makes int8 worth a change
MOST_LOST: Final = 1.0  # heuristic: points, or percent of an error, that int8 may lose


@dataclass(frozen=True, kw_only=True)
class ExportedAccuracy:
    """The metric of a project's task on its test videos, before and after the export."""

    metric: str
    trained: float  # as `everest train` reports it
    trained_views: int  # of a video
    exported: float | None  # of the file, or of a file for each fold; None: equal to `trained`
    interval: list[float] | None  # 95 %, of `exported`
    checkpoint: float | None  # of the same models before the export, on 1 view; None: not measured
    videos: int  # of the test
    folds: int  # 0: the project has a test list
    num_changed: int | None = None  # test videos that get another class than before the export

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


def compare_precisions(document: dict[str, Any], accuracy: ExportedAccuracy | None) -> dict[str, Any]:
    """A file in int8 beside the file in fp32 of the same model, by the document of `write_onnx`."""
    costs = document["fp32"], {key: document[key] for key in document["fp32"]}
    before_ms, after_ms = (cost["network_ms"] for cost in costs)
    faster = f"int8 is {before_ms / after_ms:.2g} times as fast"
    advice = f"{faster}; test both files on labeled videos before you choose"
    compared = {"num_changed": document["num_changed"], "num_videos": document["num_compared"]}
    if accuracy is not None and accuracy.exported is not None and accuracy.checkpoint is not None:
        name, before, after = accuracy.metric, accuracy.checkpoint, accuracy.exported
        compared = {"num_changed": accuracy.num_changed, "num_videos": accuracy.videos}
        costs = {name: before, **costs[0]}, {name: after, **costs[1]}
        loss = (before - after) * (1 if METRICS[name].is_higher_better else -1)
        most = MOST_LOST if METRICS[name].is_percent else MOST_LOST / 100 * before
        choice = "int8" if loss <= most else "fp32"
        values = f"{value_text(name, after)} (fp32: {value_text(name, before)})"
        advice = f"take {choice}: {faster}, with a {METRICS[name].title} of {values}"
    if after_ms > BARELY_FASTER * before_ms:
        advice = "take fp32: int8 is not clearly faster"
    return {"fp32": costs[0], "int8": costs[1], **compared, "advice": advice}


def list_precisions(comparison: dict[str, Any]) -> list[str]:
    """The table of `compare_precisions`, and its advice."""
    files, num_videos = [comparison["fp32"], comparison["int8"]], plural(comparison["num_videos"], "video")
    rows = {"": ["fp32", "int8"]}
    for metric in files[0].keys() & METRICS.keys():
        title = f"{METRICS[metric].title} on {num_videos}"
        rows[title] = [value_text(metric, file[metric]) for file in files]
    if comparison["num_changed"] is not None:
        rows[f"another class, of {num_videos}"] = ["-", str(comparison["num_changed"])]
    rows["file"] = [f"{file['bytes'] / 1e6:.1f} MB" for file in files]
    rows["network, one CPU thread, a clip"] = [f"{file['network_ms']:.3g} ms" for file in files]
    lines = [f"{title:<32}{fp32:>10}{int8:>10}" for title, (fp32, int8) in rows.items()]
    return [*lines, comparison["advice"]]


def read_project_result(weights: Path) -> ProjectResult | None:
    """The result of the project that delivered these weights; None if no finished project did."""
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
    """Evaluate an ONNX file on one view of each test video of the project that delivered `weights`.

    With folds, the model of the file has learned from all videos: the models of the folds are exported in the
    same way, and each file is tested on the videos of its fold.

    Args:
        precision: of the file; see `everest.checkpoints.graph.make_graph`, also for `keep`.
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
        folds = weights.parent.parent / FOLDS_FOLDER
        models = [find_weights(folds / str(i + 1) / MODEL_FOLDER) for i in range(len(result.folds))]
        parts = _test_folds(models, result.metric, precision, keep, report)
    joined = list(map(Predictions.joined, zip(*parts, strict=True)))
    measured = [compute_metrics(each, intervals=len(set(each.groups)) > 1) for each in joined]
    values, before = [*measured, {}, {}][:2]
    num_changed = None
    if len(joined) == 2 and result.metric == METRIC_OF_TASK["single-label"]:
        exported, original = (each.outputs.mean(axis=1).argmax(axis=1) for each in joined)
        num_changed = int((exported != original).sum())
    return ExportedAccuracy(
        metric=result.metric,
        trained=result.value,
        trained_views=views,
        exported=values.get(result.metric),
        interval=find_interval(values, result.metric),
        checkpoint=before.get(result.metric),
        videos=result.videos,
        folds=len(result.folds),
        num_changed=num_changed,
    )


def _test_folds(
    models: Sequence[Path], metric: str, precision: GraphPrecision, keep: float | None, report: Report
) -> list[list[Predictions]]:
    """The predictions of the exported file of each fold, and of its model before the export.

    They are kept in the folder of the fold, so that a repeated call has to test the remaining folds only.
    """
    parts, times = [], []
    for number, weights in enumerate(models, start=1):
        title, started = f"fold {number} of {len(models)}", monotonic()
        saved = weights.parents[1] / REPORT / f"export-{_checksum(weights, precision, keep)}.json"
        if not saved.is_file():
            report(heading(f"{title}: export and test"))
            write_document(saved, asdict(_test_fold(weights, precision, keep, report)))
            times.append(monotonic() - started)
        outputs, spec = TestOutputs.read(saved), open_model(weights, kind="clips").spec
        assert isinstance(spec, ClipSpec)
        parts.append([outputs.predictions(name, *spec.heads) for name in (EXPORTED, BEFORE)])
        values = [compute_metrics(part, intervals=False)[metric] for part in parts[-1]]
        after, before = (value_text(metric, value) for value in values)
        seconds = (len(models) - number) * sum(times) / max(1, len(times))
        left = f"; about {time_text(seconds)} left" if seconds else ""
        report(notice(f"{title}: {METRICS[metric].title} {precision} {after}, before {before}{left}"))
    return parts


def _checksum(weights: Path, precision: GraphPrecision, keep: float | None) -> str:
    """A hash of what the outputs of an exported model depend on, except for the bytes of the test videos."""
    recipe = weights.parent / RECIPE_FILE
    data = load_recipe(recipe).data
    lists = [Path(data.root, name) for name in (data.train, data.test) if name is not None]
    inputs = [version("everest-video"), precision, str(keep)]
    inputs += [hashlib.sha256(path.read_bytes()).hexdigest() for path in (weights, recipe, *lists)]
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]


def _test_fold(weights: Path, precision: GraphPrecision, keep: float | None, report: Report) -> TestOutputs:
    """The outputs of the exported file of a fold, calibrated on its training videos, and of its model."""
    opened, recipe = open_model(weights, kind="clips"), load_recipe(weights.parent / RECIPE_FILE)
    calibration: list[Tensor] = []
    if precision == "int8":
        source = Path(recipe.data.root, recipe.data.train or "")
        calibration = read_int8_clips(opened, source, report, most_held_out=0).calibration
    with TemporaryDirectory() as folder:
        file = Path(folder) / "fold.onnx"
        write_test_file(file, make_graph(opened, keep=keep, precision=precision), calibration, report)
        exported, before = (_predict(source, recipe, report) for source in (file, weights))
    return TestOutputs(
        videos=exported.videos,
        groups=list(exported.groups),
        labels=[label for (label,) in exported.labels],
        outputs={
            EXPORTED: exported.outputs.mean(axis=1).tolist(),
            BEFORE: before.outputs.mean(axis=1).tolist(),
        },
        dropped=len(exported.skipped),
    )


def _predict(file: Path, recipe: Recipe, report: Report) -> Predictions:
    """The predictions of an ONNX file or a checkpoint for one view of each test video."""
    recipe = replace(recipe, eval=replace(recipe.eval, clips=1, crops=1))
    model, spec, recipe = open_classifier(file, recipe, saved_selection=False, report=ignore_event)
    runtime = Runtime(torch.device("cpu"), "fp32")
    return evaluate_classifier(model, spec, recipe, runtime, report=report, files=EvaluationFiles())[1]
