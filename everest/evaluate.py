"""Multi-view testing: every video in clips x crops views, its class from the mean of their probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from everest.checkpoints.load import open_weights, require_kind
from everest.config.settings import Recipe
from everest.data.classes import Classes
from everest.data.dataset import VideoClips
from everest.data.stages import evaluation_clips
from everest.errors import CheckpointError
from everest.inference.accuracy import Scores, accuracies, refuse_too_many_skipped, write_predictions
from everest.inference.multi_view import score_shares
from everest.inference.report import PAGE, share_cost, write_report
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.system.events import Report, notice
from everest.system.files import check_new_file, check_new_folder
from everest.system.weights import Weights, load_tensors


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
    weights = open_weights(weights_file)
    spec, model = _classifier_for(recipe, weights, source=weights_file)
    classes = Classes(count=model.num_classes, names=weights.classes, heads=model.heads)
    clips = evaluation_clips(recipe, classes)
    model.to(accelerator.device)
    score = partial(score_shares, model, clips, accelerator, settings=recipe.train, report=report)
    scores, sweep = _swept(spec, outputs.keeps, score)
    for path, reason in scores.skipped:
        report(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(scores, recipe.data.max_bad)
    result = {
        **accuracies(scores),
        "videos": len(scores.videos),
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(scores.skipped),
        "seconds": round(time.monotonic() - began, 2),
        "checkpoint": str(weights_file),
        "recipe": recipe.name,
    }
    if sweep:
        result["sweep"] = [{**cost, **accuracies(found)} for cost, found in sweep]
    if accelerator.is_main_process:
        result |= _write(outputs, result, scores, classes, clips)
    return result


def _swept(
    spec: ModelSpec, keeps: Sequence[float], score: Callable[..., list[Scores]]
) -> tuple[Scores, list[tuple[dict[str, Any], Scores]]]:
    """The scores as trained, and for each share its cost with its scores; no share is scored twice."""
    costs = [share_cost(spec, keep) for keep in keeps]
    usual = spec.selection.at_evaluation()
    shares = [None, *(keep for keep in keeps if spec.selection.at_evaluation(keep) != usual)]
    scored = dict(zip(shares, score(keeps=shares), strict=True))
    as_trained = scored[None]
    return as_trained, [(cost, scored.get(cost["keep"], as_trained)) for cost in costs]


def _write(
    outputs: Outputs, result: dict[str, Any], scores: Scores, classes: Classes, clips: VideoClips
) -> dict[str, Any]:
    """Write the files that are asked for; what the document tells of them."""
    if outputs.predictions is not None:
        write_predictions(outputs.predictions, scores, classes)
    if outputs.page is None:
        return {}
    return {"report": str(write_report(outputs.page, result, scores, classes, clips))}


def _classifier_for(recipe: Recipe, weights: Weights, *, source: Path) -> tuple[ModelSpec, VideoClassifier]:
    """The classifier of `weights` with its spec, for the recipe's clips and token selection."""
    require_kind(weights, "classifier", source=source)
    spec = ModelSpec.of(weights.settings, source=source)
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


def _told(heads: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name} ({count})" for name, count in heads.items()) if heads else "one without a name"
