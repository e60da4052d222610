"""Multi-view testing: every video in clips x crops views, its class from the mean of their probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from everest.checkpoints.load import open_model
from everest.config.settings import Recipe
from everest.data.classes import Classes
from everest.data.dataset import VideoClips
from everest.data.stages import evaluation_clips
from everest.errors import CheckpointError
from everest.inference.accuracy import Predictions, accuracies, refuse_too_many_skipped, write_predictions
from everest.inference.multi_view import evaluate_views
from everest.inference.report import PAGE, share_cost, write_report
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.system.events import Report, notice
from everest.system.files import check_new_file, check_new_folder


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a test gives beside its accuracies.

    Args:
        predictions: a CSV file, one row a video.
        page: a folder for a page with pictures.
        keeps: shares of the tokens to test with, too.
        overwrite: replace what is there.
    """

    predictions: Path | None = None
    page: Path | None = None
    keeps: tuple[float, ...] = ()
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what could not be written after hours of testing.

        Raises:
            RecipeError: it is there, and is not to be replaced.
            EnvironmentProblem: the disk refuses it.
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
    """Test a classifier on the recipe's `data.test`; the accuracies with all that tells how they came about.

    The clip and the token selection are those of the recipe, which is the run's own unless another is given.

    Returns:
        The document of `everest eval --json`; with `outputs.keeps` a row for each share under `sweep`.
    Raises:
        CheckpointError: no classifier, or one that does not go with the recipe.
        DataError: more videos than `data.max_bad` allows could not be read.
        RecipeError: a share that leaves no token, or something to write is there already.
    """
    began = time.monotonic()
    if accelerator.is_main_process:
        outputs.check()
    opened = open_model(
        weights_file,
        kind="classifier",
        frames=recipe.data.frames,
        size=recipe.data.frame_size,
        selection=recipe.finetune.selection,
        check=partial(_check_recipe, recipe, source=weights_file),
    )
    spec, model = opened.spec, opened.module
    assert isinstance(spec, ModelSpec)
    assert isinstance(model, VideoClassifier)
    classes = Classes(count=model.num_classes, names=opened.weights.classes, heads=model.heads)
    clips = evaluation_clips(recipe, classes)
    model.to(accelerator.device)
    run = partial(evaluate_views, model, clips, accelerator, settings=recipe.train, report=report)
    predictions, sweep = _swept(spec, outputs.keeps, run)
    for path, reason in predictions.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(predictions, recipe.data.max_bad)
    result = {
        **accuracies(predictions),
        "videos": len(predictions.videos),
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(predictions.skipped),
        "seconds": round(time.monotonic() - began, 2),
        "checkpoint": str(weights_file),
        "recipe": recipe.name,
    }
    if sweep:
        result["sweep"] = [{**cost, **accuracies(found)} for cost, found in sweep]
    if accelerator.is_main_process:
        result |= _write(outputs, result, predictions, classes, clips)
    return result


def _swept(
    spec: ModelSpec, keeps: Sequence[float], run: Callable[..., list[Predictions]]
) -> tuple[Predictions, list[tuple[dict[str, Any], Predictions]]]:
    """The predictions as trained, and for each keep ratio its cost and predictions; no ratio is run twice."""
    costs = [share_cost(spec, keep) for keep in keeps]
    usual = spec.selection.at_evaluation()
    shares = [None, *(keep for keep in keeps if spec.selection.at_evaluation(keep) != usual)]
    by_share = dict(zip(shares, run(keeps=shares), strict=True))
    as_trained = by_share[None]
    return as_trained, [(cost, by_share.get(cost["keep"], as_trained)) for cost in costs]


def _write(
    outputs: Outputs, result: dict[str, Any], predictions: Predictions, classes: Classes, clips: VideoClips
) -> dict[str, Any]:
    """Write the files that are asked for; what the document tells of them."""
    if outputs.predictions is not None:
        write_predictions(outputs.predictions, predictions, classes)
    if outputs.page is None:
        return {}
    return {"report": str(write_report(outputs.page, result, predictions, classes, clips))}


def _check_recipe(recipe: Recipe, spec: ModelSpec, *, source: Path) -> None:
    """Raise CheckpointError when a classifier has other tubelets, heads or classes than the recipe."""
    trained, asked = spec.model.tubelet, recipe.model.tubelet
    if trained != asked:
        raise CheckpointError(f"{source}: trained with tubelets of {trained}, the recipe has {asked}")
    asked_heads = recipe.data.heads
    if asked_heads is not None and list(asked_heads.items()) != list((spec.heads or {}).items()):
        raise CheckpointError(
            f"{source}: its heads are {_told(spec.heads)}, the recipe has {_told(asked_heads)}"
        )
    if asked_heads is None and spec.heads is None and recipe.data.num_classes not in (None, spec.num_classes):
        raise CheckpointError(
            f"{source}: tells {spec.num_classes} classes apart, the recipe has {recipe.data.num_classes}"
        )


def _told(heads: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name} ({count})" for name, count in heads.items()) if heads else "one without a name"
