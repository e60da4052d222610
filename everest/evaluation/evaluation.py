"""`everest eval`: opens a classifier, measures it over views, and writes its files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from everest.checkpoints.load import all_weights
from everest.config.settings import Recipe
from everest.data.dataset import VideoClips
from everest.data.stages import evaluation_clips
from everest.evaluation.multi_view import Classifier, evaluate_views
from everest.evaluation.opening import open_classifier
from everest.inference.model import require_finite_outputs
from everest.lists.classes import Classes
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.metrics import measure, per_class, write_predictions
from everest.metrics.predicted import Predictions, refuse_too_many_skipped
from everest.models.cost import view_cost
from everest.models.spec import ModelSpec
from everest.system.events import Report, notice
from everest.system.files import check_new_file, check_new_folder, refuse_inputs
from everest.system.storage import parse_location


@dataclass(frozen=True, kw_only=True)
class EvaluationFiles:
    """The files that an evaluation writes.

    Args:
        predictions: a CSV file, one row a video.
        page: a folder for a page with figures.
        overwrite: replace existing files.
    """

    predictions: Path | None = None
    page: Path | None = None
    overwrite: bool = False

    def check(self, weights: Path | None) -> None:
        """Check before the evaluation, which may take hours, that the files can be written.

        Args:
            weights: the checkpoint, if the model is from one.
        """
        self.refuse_inputs([] if weights is None else all_weights(weights))
        if self.predictions is not None:
            check_new_file(self.predictions, option="--predictions", overwrite=self.overwrite)
        if self.page is not None:
            check_new_folder(self.page, option="--report", overwrite=self.overwrite)

    def refuse_inputs(self, inputs: Iterable[object]) -> None:
        """Raise RecipeError if a file to write is one of the inputs, or a folder that has one."""
        for option, path in (("--predictions", self.predictions), ("--report", self.page)):
            if path is not None:
                refuse_inputs(path, inputs, option=option)


NO_FILES = EvaluationFiles()


def evaluate(
    recipe: Recipe,
    weights_file: Path,
    accelerator: Accelerator,
    *,
    report: Report,
    files: EvaluationFiles = NO_FILES,
    saved_selection: bool = False,
) -> dict[str, Any]:
    """Evaluate the classifier of a checkpoint, or of an ONNX file of `export`, on the recipe's `data.test`.

    The recipe sets the clips and the token selection; it is the run's recipe unless another is given. An ONNX
    file has its own selection.

    Args:
        saved_selection: use the token selection that is stored in the weights, not that of the recipe.
    Returns:
        The document of `everest eval --json`: accuracies and how they were measured.
    """
    if accelerator.is_main_process:
        files.check(weights_file)
    model, spec, recipe = open_classifier(
        weights_file, recipe, saved_selection=saved_selection, report=report
    )
    return evaluate_classifier(model, spec, recipe, accelerator, report=report, files=files)


def evaluate_classifier(
    model: Classifier,
    spec: ModelSpec,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    report: Report,
    files: EvaluationFiles,
) -> dict[str, Any]:
    """Evaluate a classifier as it is on the recipe's `data.test`; see `evaluate`.

    Args:
        spec: of the model; the cost of a view follows from it.
        recipe: the videos and their views; its clips and classes are the model's.
    """
    started = time.monotonic()
    model.to(accelerator.device)
    classes = Classes(heads=model.heads, names=model.class_names)
    source = str(model.file or type(model).__name__)
    clips = evaluation_clips(recipe, classes)
    files.refuse_inputs(_inputs(recipe, clips))
    predictions = evaluate_views(model, clips, accelerator, settings=recipe.train, report=report)
    require_finite_outputs(torch.from_numpy(predictions.outputs), source=source)
    for path, reason in predictions.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(predictions, recipe.data.max_bad)
    result = {
        **_with_classes(
            measure(predictions, intervals=_have_intervals(predictions, report)), predictions, classes
        ),
        "videos": len(predictions.videos),
        "groups": len(set(predictions.groups)),
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(predictions.skipped),
        **view_cost(spec),
        "seconds": round(time.monotonic() - started, 2),
        "checkpoint": source,
        "recipe": recipe.name,
    }
    # The page first, which takes longer: after a kill, a file of predictions would be in the way.
    if accelerator.is_main_process and files.page is not None:
        from everest.evaluation.report import PAGE, write_report

        (files.page / PAGE).unlink(missing_ok=True)  # it would be next to pictures that are not its own
        result["report"] = str(write_report(files.page, result, predictions, classes, clips))
    if accelerator.is_main_process and files.predictions is not None:
        write_predictions(files.predictions, predictions, classes)
    return result


def _inputs(recipe: Recipe, clips: VideoClips) -> list[object]:
    """The lists and videos of an evaluation."""
    root = parse_location(recipe.data.root)
    lists = [root / name for name in (recipe.data.test, recipe.data.classes) if name is not None]
    return [*lists, *(sample.video for sample in clips.samples)]


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


def _with_classes(measured: dict[str, Any], predictions: Predictions, classes: Classes) -> dict[str, Any]:
    """Add `per_class` to the metrics of each head of classes."""
    for name, head in predictions.by_head().items():
        if head.head.task != "regression":
            of_head = measured["heads"][name] if name else measured
            of_head["per_class"] = per_class(head, classes.of_head(head.head))
    return measured
