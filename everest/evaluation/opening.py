"""Opens the classifier of a checkpoint or of an ONNX file for `everest eval`, and checks it by the recipe."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from everest.checkpoints.describe import as_trained, describe
from everest.checkpoints.graph import open_exported
from everest.checkpoints.load import ONNX_SUFFIX, open_model
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.evaluation.multi_view import Classifier
from everest.methods.strategies import Strategy
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.system.events import Report, notice
from everest.system.run_folder import BEST


def open_classifier(
    file: Path, recipe: Recipe, *, saved_selection: bool, report: Report
) -> tuple[Classifier, ModelSpec, Recipe]:
    """Open a classifier for the clips of a recipe.

    Args:
        saved_selection: use the token selection that is stored in the weights, as an ONNX file always does.
    Returns:
        The classifier, its spec, and the recipe with the pixels and the selection of the classifier.
    """
    if file.suffix == ONNX_SUFFIX:
        model = open_exported(file)
        spec, names, change = model.spec, model.class_names, "export it again to change it"
        _check_recipe(recipe, spec, source=file)
        _check_clips(recipe, spec, source=file)
        stride = recipe.finetune.stride
        if model.knows_stride and stride != model.clip.stride:
            text = f"the clips have a stride of {stride}, {file} was exported for {model.clip.stride}"
            report(notice(f"{text}; --set finetune.stride={model.clip.stride} changes it"))
    else:
        opened = open_model(
            file,
            kind="classifier",
            frames=recipe.data.frames,
            size=recipe.data.frame_size,
            selection=None if saved_selection else recipe.finetune.selection,
            check=partial(_check_recipe, recipe, source=file),
        )
        spec, model, names = opened.spec, opened.module, opened.weights.classes
        change = "--set finetune.selection.* changes it"
        assert isinstance(spec, ModelSpec)
        assert isinstance(model, VideoClassifier)
    others, own = recipe.finetune.selection, spec.selection
    if others.at_evaluation() != own.at_evaluation():
        text = f"{_settings(own)}; recipe {recipe.name} has {_settings(others)}"
        report(notice(f"tokens are selected as in the weights: {text}; {change}"))
    if file.name == BEST and recipe.data.val is not None and recipe.data.val == recipe.data.test:
        report(
            notice(
                f"warning: {recipe.data.test} has chosen these weights (data.val), so its accuracy is too "
                "high; evaluate another list, or take --which newest"
            )
        )
    recipe = as_trained(recipe, spec, source=file)
    recipe = replace(recipe, finetune=replace(recipe.finetune, selection=own))
    if isinstance(model, VideoClassifier):
        describe(model, recipe, file=file, class_names=names)
    return model, spec, recipe


def _check_recipe(recipe: Recipe, spec: ModelSpec, *, source: Path) -> None:
    """Raise CheckpointError if a classifier has other tubelets, heads or classes than the recipe."""
    data, heads = recipe.data, list((spec.heads or {}).items())
    pairs: dict[str, tuple[Any, Any]] = {"model.tubelet": (spec.model.tubelet, recipe.model.tubelet)}
    if data.heads is not None:
        pairs["data.heads"] = (heads, list(data.heads.items()))
    elif not heads:
        pairs["data.task"] = (spec.task, data.task)
        pairs["data.num_classes"] = (spec.num_classes, data.num_classes or spec.num_classes)
    for key, (own, other) in pairs.items():
        if own != other:
            if key == "data.heads":
                own, other = dict(own), dict(other)
            raise CheckpointError(f"{source}: trained with {key} {own}, the recipe has {other}")


def _check_clips(recipe: Recipe, spec: ModelSpec, *, source: Path) -> None:
    """Raise CheckpointError if a recipe has other clips than an exported file, which takes no others."""
    data, (height, width) = recipe.data, spec.size
    if (data.frames, data.frame_size) != (spec.frames, spec.size):
        clips = " x ".join(map(str, (data.frames, *data.frame_size)))
        raise CheckpointError(
            f"{source}: takes clips of {spec.frames} x {height} x {width}, recipe {recipe.name} has {clips}; "
            f"add --set data.frames={spec.frames} --set data.size=[{height},{width}]"
        )


def _settings(selection: Strategy) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(selection).items() if value is not None)
