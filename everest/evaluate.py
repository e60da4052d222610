"""Multi-view evaluation: the class of a video is predicted from the mean over clips x crops views."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from everest.checkpoints.load import open_weights, require_kind
from everest.config.settings import Recipe
from everest.data.classes import Classes
from everest.data.stages import evaluation_clips
from everest.errors import CheckpointError
from everest.inference.accuracy import accuracies, refuse_too_many_skipped, write_predictions
from everest.inference.multi_view import score_shares
from everest.inference.report import PAGE, share_cost, write_report
from everest.methods.strategies import at_test
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.system.events import Report, notice
from everest.system.files import check_new_file, check_new_folder
from everest.system.weights import Weights, load_tensors


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of an evaluation in addition to its accuracies.

    Args:
        predictions: a CSV file, one row a video.
        page: a folder for a page with figures.
        keeps: further keep ratios to evaluate with.
        overwrite: replace existing files.
    """

    predictions: Path | None = None
    page: Path | None = None
    keeps: tuple[float, ...] = ()
    overwrite: bool = False

    def check(self) -> None:
        """Check before the evaluation, which may take hours, that its files can be written.

        Raises:
            RecipeError: a file exists, and `overwrite` is not set.
            EnvironmentProblem: the disk does not allow it.
        """
        if self.predictions is not None:
            check_new_file(self.predictions, option="--predictions", overwrite=self.overwrite)
        if self.page is not None:
            check_new_folder(self.page, PAGE, option="--report", overwrite=self.overwrite)


NO_FILES = Outputs()


def evaluate(
    recipe: Recipe,
    weights_file: Path,
    accelerator: Accelerator,
    *,
    report: Report,
    outputs: Outputs = NO_FILES,
) -> dict[str, Any]:
    """Evaluate a classifier on the recipe's `data.test`.

    The recipe sets the clips and the token selection; it is the run's recipe unless another is given.

    Returns:
        The document of `everest eval --json`: accuracies and how they were measured. With `outputs.keeps` it
        has a row for each keep ratio under `sweep`.
    Raises:
        CheckpointError: the weights are no classifier, or do not fit the recipe.
        DataError: more videos are unreadable than `data.max_bad` allows.
        RecipeError: a keep ratio that leaves no token, or an output file exists already.
    """
    started = time.monotonic()
    if accelerator.is_main_process:
        outputs.check()
    weights = open_weights(weights_file)
    spec, model = _classifier_for(recipe, weights, source=weights_file)
    classes = Classes(count=model.num_classes, names=weights.classes, heads=model.heads)
    clips = evaluation_clips(recipe, classes)
    model.to(accelerator.device)
    costs = [share_cost(spec, keep) for keep in outputs.keeps]
    selection = at_test(spec.selection)
    keeps = [None, *(keep for keep in outputs.keeps if at_test(spec.selection, keep) != selection)]
    measured = score_shares(model, clips, accelerator, settings=recipe.train, report=report, keeps=keeps)
    scores_by_keep = dict(zip(keeps, measured, strict=True))
    scores = scores_by_keep[None]  # as trained
    for path, reason in scores.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(scores, recipe.data.max_bad)
    result = {
        **accuracies(scores),
        "videos": len(scores.videos),
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(scores.skipped),
        "seconds": round(time.monotonic() - started, 2),
        "checkpoint": str(weights_file),
        "recipe": recipe.name,
    }
    if costs:
        result["sweep"] = [{**cost, **accuracies(scores_by_keep.get(cost["keep"], scores))} for cost in costs]
    if accelerator.is_main_process and outputs.predictions is not None:
        write_predictions(outputs.predictions, scores, classes)
    if accelerator.is_main_process and outputs.page is not None:
        result["report"] = str(write_report(outputs.page, result, scores, classes, clips))
    return result


def _classifier_for(recipe: Recipe, weights: Weights, *, source: Path) -> tuple[ModelSpec, VideoClassifier]:
    """Build the classifier of `weights` for the recipe's clips and token selection.

    Raises:
        CheckpointError: the weights are no classifier, or do not fit the recipe.
    """
    require_kind(weights, "classifier", source=source)
    spec = ModelSpec.of(weights.settings, source=source)
    tubelet, heads, num_classes = recipe.model.tubelet, recipe.data.heads, recipe.data.num_classes
    if spec.model.tubelet != tubelet:
        raise CheckpointError(
            f"{source}: trained with tubelets of {spec.model.tubelet}, the recipe has {tubelet}"
        )
    if heads is not None and list(heads.items()) != list((spec.heads or {}).items()):
        raise CheckpointError(
            f"{source}: its heads are {_list_heads(spec.heads)}, the recipe has {_list_heads(heads)}"
        )
    if heads is None and spec.heads is None and num_classes not in (None, spec.num_classes):
        raise CheckpointError(
            f"{source}: distinguishes {spec.num_classes} classes, the recipe has {num_classes}"
        )
    fitted = replace(
        spec,
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        selection=recipe.finetune.selection,
    )
    model = fitted.build()
    assert isinstance(model, VideoClassifier)
    load_tensors(model, weights.tensors, source=str(source))
    return fitted, model


def _list_heads(heads: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name} ({count})" for name, count in heads.items()) if heads else "one without a name"
