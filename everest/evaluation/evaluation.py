"""`everest eval`: opens a classifier, measures it over views and keep ratios, and writes its files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from everest.checkpoints.load import all_weights
from everest.config.settings import Recipe
from everest.data.dataset import VideoClips
from everest.data.stages import evaluation_clips
from everest.evaluation.metric_text import metric_values
from everest.evaluation.multi_view import Classifier, evaluate_views
from everest.evaluation.opening import open_classifier
from everest.inference.model import OpenedModel, require_finite_outputs
from everest.lists.classes import Classes
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.metrics import measure, per_class, write_predictions
from everest.metrics.predicted import Predictions, refuse_too_many_skipped
from everest.models.classifier import VideoClassifier
from everest.models.cost import share_cost
from everest.models.spec import ModelSpec
from everest.system.accelerator import decide_on_main
from everest.system.events import Report, notice
from everest.system.files import check_new_file, check_new_folder, refuse_inputs
from everest.system.storage import parse_location


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Further measurements and files of an evaluation.

    Args:
        predictions: a CSV file, one row a video.
        page: a folder for a page with figures.
        keeps: further keep ratios to evaluate with.
        overwrite: replace existing files.
        intervals: whether the metrics have 95 % intervals; a page always has them.
        retrieval: whether the nearest videos by features are compared, too (everest.probes.probe.retrieval).
    """

    predictions: Path | None = None
    page: Path | None = None
    keeps: tuple[float, ...] = ()
    overwrite: bool = False
    intervals: bool = True
    retrieval: bool = False

    def check(self, weights: Path | None) -> None:
        """Check before the evaluation, which may take hours, that its files can be written.

        Args:
            weights: the checkpoint, if the model is from one.
        """
        for option, path in self._by_option():
            refuse_inputs(path, [] if weights is None else all_weights(weights), option=option)
        if self.predictions is not None:
            check_new_file(self.predictions, option="--predictions", overwrite=self.overwrite)
        if self.page is not None:
            check_new_folder(self.page, option="--report", overwrite=self.overwrite)

    def refuse_inputs(self, recipe: Recipe, clips: VideoClips) -> None:
        """Raise RecipeError if an output is a list or video of the evaluation, or a folder that has one."""
        root = parse_location(recipe.data.root)
        lists = [root / name for name in (recipe.data.test, recipe.data.classes) if name is not None]
        inputs = [*lists, *(sample.video for sample in clips.samples)]
        for option, path in self._by_option():
            refuse_inputs(path, inputs, option=option)

    def _by_option(self) -> list[tuple[str, Path]]:
        paths = {"--predictions": self.predictions, "--report": self.page}
        return [(option, path) for option, path in paths.items() if path is not None]


PLAIN = EvaluationOptions()


def evaluate(
    recipe: Recipe,
    weights_file: Path,
    accelerator: Accelerator,
    *,
    report: Report,
    options: EvaluationOptions = PLAIN,
    saved_selection: bool = False,
) -> dict[str, Any]:
    """Evaluate the classifier of a checkpoint, or of an ONNX file of `export`, on the recipe's `data.test`.

    The recipe sets the clips and the token selection; it is the run's recipe unless another is given. An ONNX
    file has its own selection.

    Args:
        saved_selection: use the token selection that is stored in the weights, not that of the recipe.
    Returns:
        The document of `everest eval --json`: accuracies and how they were measured. With `options.keeps` it
        has a row for each keep ratio under `sweep`; with several heads, one for each metric under `rows`.
    """
    if accelerator.is_main_process:
        options.check(weights_file)
    model, spec, recipe = open_classifier(
        weights_file, recipe, saved_selection=saved_selection, report=report
    )
    return evaluate_classifier(model, spec, recipe, accelerator, report=report, options=options)


def evaluate_classifier(
    model: Classifier,
    spec: ModelSpec,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    report: Report,
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Evaluate a classifier as it is on the recipe's `data.test`; see `evaluate`.

    Args:
        spec: of the model; the costs of `options.keeps` follow from it.
        recipe: the videos and their views; its clips and classes are the model's.
    """
    started = time.monotonic()
    model.to(accelerator.device)
    classes = Classes(heads=model.heads, names=model.class_names)
    source = str(model.file or type(model).__name__)
    clips = evaluation_clips(recipe, classes)
    options.refuse_inputs(recipe, clips)
    costs = {keep: share_cost(spec, keep) for keep in (None, *options.keeps)}
    selector = model.selector
    trained_selector = selector.at_evaluation()
    keeps = [None, *(keep for keep in options.keeps if selector.at_evaluation(keep) != trained_selector)]
    measured = evaluate_views(model, clips, accelerator, settings=recipe.train, report=report, keeps=keeps)
    predictions_by_keep = dict(zip(keeps, measured, strict=True))
    predictions = predictions_by_keep[None]  # as trained
    for each in measured:
        require_finite_outputs(torch.from_numpy(each.outputs), source=source)
    for path, reason in predictions.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(predictions, recipe.data.max_bad)
    intervals = (options.intervals or options.page is not None) and _have_intervals(predictions, report)
    result = {
        **_with_classes(measure(predictions, intervals=intervals), predictions, classes),
        "videos": len(predictions.videos),
        "groups": len(set(predictions.groups)),
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(predictions.skipped),
        **costs[None],
        "seconds": round(time.monotonic() - started, 2),
        "checkpoint": source,
        "recipe": recipe.name,
    }
    if options.retrieval:
        assert isinstance(model, VideoClassifier), "an exported classifier has no features"
        nearest = _nearest(model, clips, accelerator, report)
        result |= nearest.get("", {"nearest": nearest})
        if all(row["retrieval"]["precision@10"] is None for row in nearest.values()):
            report(notice("--retrieval: no video has one of its class in another group (or no single label)"))
    if options.keeps:
        result["sweep"] = [
            {**costs[keep], **measure(predictions_by_keep.get(keep, predictions), intervals=intervals)}
            for keep in options.keeps
        ]
    if "heads" in result:  # which may have different metrics: these are listed as rows, too
        for document in (result, *result.get("sweep", ())):
            document["rows"] = [found._asdict() for found in metric_values(document)]
    # The page first, which takes longer: after a kill, a file of predictions would be in the way.
    if accelerator.is_main_process and options.page is not None:
        from everest.evaluation.report import PAGE, write_report

        (options.page / PAGE).unlink(missing_ok=True)  # it would be next to pictures that are not its own
        result["report"] = str(write_report(options.page, result, predictions, classes, clips))
    if accelerator.is_main_process and options.predictions is not None:
        write_predictions(options.predictions, predictions, classes)
    return result


def _have_intervals(predictions: Predictions, report: Report) -> bool:
    """Whether the videos are of several groups; reports if they are of few."""
    groups = len(set(predictions.groups))
    if groups == 1:
        report(notice("all videos of data.test are of one group: the metrics have no intervals"))
    elif groups < FEW_GROUPS:
        unit = "videos" if groups == len(predictions.videos) else "groups of videos"
        few = f"data.test has {groups} {unit}; with fewer than {FEW_GROUPS}, the intervals are too narrow"
        report(notice(few))
    return groups > 1


def _nearest(
    model: VideoClassifier, clips: VideoClips, accelerator: Accelerator, report: Report
) -> dict[str, dict[str, Any]]:
    """Compare the features of the test videos in the main process, which reads them a second time."""
    from everest.probes.probe import retrieval  # here: scikit-learn takes a second to import

    opened = OpenedModel.of(model)
    return decide_on_main(accelerator, lambda: retrieval(opened, clips.samples, model.heads, report=report))


def _with_classes(measured: dict[str, Any], predictions: Predictions, classes: Classes) -> dict[str, Any]:
    """Return the metrics of `measure` with `per_class` of each head of classes."""
    added = {
        name: {"per_class": per_class(head, classes.of_head(head.head))}
        for name, head in predictions.by_head().items()
        if head.head.task != "regression"
    }
    if "heads" not in measured:
        return {**measured, **added.get("", {})}
    heads = {name: {**of_head, **added.get(name, {})} for name, of_head in measured["heads"].items()}
    return {**measured, "heads": heads}
