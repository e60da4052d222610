"""`everest eval`: opens a classifier, measures it over views, and writes the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.checkpoints.describe import with_pixels_of
from everest.checkpoints.graph import ExportedClassifier, open_exported
from everest.checkpoints.load import ONNX_SUFFIX, find_run_weights, open_model
from everest.config.heads import head_settings
from everest.config.settings import Recipe, TrainSettings
from everest.data.clip_dataset import ClipDataset
from everest.data.recipe_clips import evaluation_dataset
from everest.errors import CheckpointError
from everest.inference.opened_model import require_finite_outputs
from everest.inference.pieces import ViewTensors
from everest.inference.videos import Batching, compute_over_videos
from everest.inference.windows import Unreadable
from everest.lists.classes import Classes
from everest.lists.groups import find_name_pattern, set_groups
from everest.lists.sample import Sample
from everest.lists.sources import seen_in
from everest.metrics.class_metrics import per_class
from everest.metrics.difference import compare_predictions
from everest.metrics.faults import count_alarms
from everest.metrics.head_metrics import compute_metrics
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.predictions import Predictions, refuse_too_many_skipped, write_predictions
from everest.models.classifier import Classifier
from everest.models.clip_spec import ClipSpec, ModelSpec
from everest.models.cost import view_cost
from everest.system.compute import Runtime
from everest.system.events import Emit, heading, notice, warning
from everest.system.files import check_new_file, check_new_folder, refuse_inputs
from everest.system.run_folder import BEST_FILE
from everest.system.storage import parse_location


@dataclass(frozen=True, kw_only=True)
class EvaluationFiles:
    """The files that an evaluation writes."""

    predictions: Path | None = None  # CSV, one row per video
    page: Path | None = None  # folder for a page with figures
    overwrite: bool = False  # replace existing files
    options: tuple[str, str] = ("--predictions", "--report")  # the caller's options for both, for messages

    def check(self, weights: Path | None) -> None:
        """Check that the files can be written, before an evaluation that may take hours."""
        self.refuse_inputs([] if weights is None else find_run_weights(weights))
        predictions_option, page_option = self.options
        if self.predictions is not None:
            check_new_file(self.predictions, option=predictions_option, overwrite=self.overwrite)
        if self.page is not None:
            check_new_folder(self.page, option=page_option, overwrite=self.overwrite)

    def refuse_inputs(self, inputs: Iterable[object]) -> None:
        """Raise RecipeError if an output is one of the inputs, or a folder that contains an input."""
        for option, path in zip(self.options, (self.predictions, self.page), strict=True):
            if path is not None:
                refuse_inputs(path, inputs, option=option)

    def write(
        self, result: dict[str, Any], predictions: Predictions, classes: Classes, dataset: ClipDataset
    ) -> None:
        """Write the page and the predictions; add the path of the page to `result`."""
        # The slow page comes first: after a kill, no file of predictions blocks the next attempt.
        if self.page is not None:
            from everest.evaluation.page import write_evaluation_page

            result["report"] = str(write_evaluation_page(self.page, result, predictions, classes, dataset))
        if self.predictions is not None:
            write_predictions(self.predictions, predictions, classes)


def evaluate_checkpoint(
    recipe: Recipe,
    weights_file: Path,
    runtime: Runtime,
    *,
    emit: Emit,
    files: EvaluationFiles,
    saved_selection: bool = False,
    group: str | None = None,
    against: tuple[Path, Recipe] | None = None,
) -> dict[str, Any]:
    """Evaluate the classifier of a checkpoint, or of an ONNX file of `export`, on the recipe's `data.test`.

    The recipe sets the clips and the token selection; it is usually the recipe of the run. An ONNX file keeps
    the selection that it was exported with.

    Args:
        saved_selection: use the token selection stored in the weights instead of the recipe's.
        group: the groups of the videos, as of `everest.lists.groups.set_groups`; None: those of the list.
        against: the weights of another model of the same classes, and its recipe, to compare on these videos.
    Returns:
        The document of `everest eval --json`: accuracies and how they were measured.
    """
    if runtime.is_main:
        files.check(weights_file)
    model, spec, recipe = open_classifier(weights_file, recipe, saved_selection=saved_selection, emit=emit)
    other = None if against is None else _open_other(model, recipe, against, emit)
    options: dict[str, Any] = {"emit": emit, "files": files, "group": group}
    result, predictions = evaluate_classifier(model, spec, recipe, runtime, **options)
    if other is not None and against is not None:
        emit(heading(f"evaluating {against[0]} on the same list"))
        _, others = evaluate_classifier(*other, runtime, emit=emit, files=EvaluationFiles(), group=group)
        classes = Classes(heads=model.heads, names=model.class_names)
        result |= {"against": str(against[0]), **compare_predictions(predictions, others, classes)}
        others_classes = Classes(heads=other[0].heads, names=other[0].class_names)
        if (alarms := count_alarms(others, others_classes)) is not None:
            result["alarms_against"] = alarms
    if seen_videos := seen_in(recipe.data, "train", map(Sample.from_video_id, predictions.videos)):
        text = f"{len(seen_videos)} of {len(predictions.videos)} videos of data.test are also in data.train"
        emit(warning(f"{text}; accuracy on videos that the model learned from is too high"))
    groups = result["groups"]
    if groups == 1:
        emit(notice("all videos of data.test are of one group: the metrics have no intervals"))
    elif groups == result["videos"] and (pattern := find_name_pattern(predictions.groups)):
        fix = f"if they are of one person, place or shift, add --group '{pattern}'"
        emit(warning(f"names of videos share words, so the intervals may be too narrow; {fix}"))
    elif groups < FEW_GROUPS:
        unit = "videos" if groups == result["videos"] else "groups of videos"
        text = f"data.test has {groups} {unit}; with fewer than {FEW_GROUPS}, the intervals are wide"
        emit(notice(text))
    return result


def _open_other(
    model: Classifier, recipe: Recipe, against: tuple[Path, Recipe], emit: Emit
) -> tuple[Classifier, ClipSpec, Recipe]:
    """Open a model to compare with another one, on the same list; CheckpointError for other classes."""
    file, other_recipe = against
    lists = {key: getattr(recipe.data, key) for key in ("root", "test", "classes")}
    other_recipe = replace(other_recipe, data=replace(other_recipe.data, **lists))
    opened = open_classifier(file, other_recipe, saved_selection=True, emit=emit)
    tasks = [[(head.task, head.outputs) for head in each.heads] for each in (model, opened[0])]
    if tasks[0] != tasks[1] or model.classes != opened[0].classes or len(model.heads) > 1:
        names = f"{', '.join(opened[0].classes)}, the new model {', '.join(model.classes)}"
        raise CheckpointError(f"--against {file}: predicts {names}; compare models of the same single task")
    return opened


def evaluate_classifier(
    model: Classifier,
    spec: ClipSpec,
    recipe: Recipe,
    runtime: Runtime,
    *,
    emit: Emit,
    files: EvaluationFiles,
    group: str | None = None,
    cached_predictions: Callable[[ClipDataset], Predictions] | None = None,
) -> tuple[dict[str, Any], Predictions]:
    """Evaluate an open classifier on the recipe's `data.test`; return the document and the predictions.

    The recipe's clips and classes must fit the model; `spec` gives a view's cost. See `evaluate_checkpoint`.

    Args:
        cached_predictions: returns the predictions of the model if they are known; None: compute them.
    """
    start_time = time.monotonic()
    model.to(runtime.device)
    classes = Classes(heads=model.heads, names=model.class_names)
    source = str(model.file or type(model).__name__)
    dataset = evaluation_dataset(recipe, classes)
    root = parse_location(recipe.data.root)
    if group is not None:
        dataset = replace(dataset, samples=set_groups(dataset.samples, group, root=Path(recipe.data.root)))
    lists = [root / name for name in (recipe.data.test, recipe.data.classes) if name is not None]
    files.refuse_inputs([*lists, *(sample.video for sample in dataset.samples)])
    if cached_predictions is None:
        predictions = evaluate_views(model, dataset, runtime, train=recipe.train, emit=emit)
    else:
        predictions = cached_predictions(dataset)
    require_finite_outputs(torch.from_numpy(predictions.outputs), source=source)
    for path, reason in predictions.skipped:
        emit(notice(f"skipped {path}: {reason}"))
    refuse_too_many_skipped(predictions, recipe.data.max_bad)
    num_groups = len(set(predictions.groups))
    metrics = compute_metrics(predictions, intervals=num_groups > 1)
    for name, head in predictions.by_head().items():
        if head.task != "regression":
            head_metrics = metrics["heads"][name] if name else metrics
            head_metrics["per_class"] = per_class(head, classes.names_of_head(head.head))
    if (alarms := count_alarms(predictions, classes)) is not None:
        metrics["alarms"] = alarms
    result = metrics | {
        "videos": len(predictions.videos),
        "groups": num_groups,
        "views": {"clips": recipe.eval.clips, "crops": recipe.eval.crops},
        "skipped": len(predictions.skipped),
        **view_cost(spec),
        "seconds": round(time.monotonic() - start_time, 2),
        "checkpoint": source,
        "recipe": recipe.name,
    }
    if runtime.is_main:
        files.write(result, predictions, classes, dataset)
    return result, predictions


@torch.inference_mode()
def evaluate_views(
    model: Classifier, dataset: ClipDataset, runtime: Runtime, *, train: TrainSettings, emit: Emit
) -> Predictions:
    """Run a classifier over all views of all videos; return the predictions in the order of the list.

    The division of videos into batches does not depend on the number of processes, so the predictions are
    equal to the bit. Unreadable videos are not replaced but listed in `skipped`.
    """
    model.eval()

    def compute(clips: Tensor) -> ViewTensors:
        with runtime.autocast():
            logits = model(clips.to(runtime.device))
        return {"outputs": model.outputs(logits).cpu()}

    per_batch = max(1, 32 // dataset.views.num_views)  # heuristic: up to 32 clips in a micro-batch
    batches = Batching(batch=per_batch).divide(range(len(dataset)))
    own, processes = batches[runtime.rank :: runtime.num_processes], runtime.num_processes
    computed = compute_over_videos(dataset, own, compute, train=train, emit=emit, processes=processes)
    rows: list[tuple[int, NDArray[np.float32] | Unreadable]] = []  # (views, outputs) of each video
    for indices, values in zip(own, computed, strict=True):
        outputs = (x if isinstance(x, Unreadable) else x["outputs"].numpy() for x in values)
        rows += zip(indices, outputs, strict=True)
    results = [(dataset.samples[i], x) for i, x in sorted(runtime.gather(rows), key=itemgetter(0))]
    readable = [(sample, x) for sample, x in results if not isinstance(x, Unreadable)]
    no_outputs = np.zeros((0, 1, model.num_classes), np.float32)
    return Predictions(
        videos=[sample.video_id for sample, _ in readable],
        labels=[sample.labels for sample, _ in readable],
        outputs=np.stack([x for _, x in readable]) if readable else no_outputs,
        skipped=[(sample.video_id, x.reason) for sample, x in results if isinstance(x, Unreadable)],
        heads=model.heads,
        groups=[sample.group_or_path for sample, _ in readable],
    )


def open_classifier(
    file: Path, recipe: Recipe, *, saved_selection: bool, emit: Emit
) -> tuple[Classifier, ClipSpec, Recipe]:
    """Open a classifier for the clips of a recipe; see `evaluate_checkpoint`.

    Returns the classifier, its spec, and the recipe with the classifier's pixel statistics and selection.
    """
    data = recipe.data
    recipe_selection = recipe.finetune.selection
    fix = "--set finetune.selection.* changes it"
    if file.suffix == ONNX_SUFFIX:
        fix = "export it again to change it"
        model = _open_onnx(file, recipe, emit)
        spec = model.spec
    else:
        checkpoint = open_model(
            file,
            kind="classifier",
            frames=data.frames,
            size=data.frame_size,
            selection=None if saved_selection else recipe_selection,
            check=partial(_check_recipe, recipe, source=file),
        )
        spec, model = checkpoint.spec, checkpoint.module
        assert isinstance(spec, ClipSpec)
        assert isinstance(model, Classifier)
    saved = spec.selection if isinstance(spec, ModelSpec) else None  # None for other kinds of models
    if saved is not None and recipe_selection.at_evaluation() != saved.at_evaluation():
        have, wanted = (
            ", ".join(f"{name} {value}" for name, value in asdict(selection).items() if value is not None)
            for selection in (saved, recipe_selection)
        )
        text = f"tokens are selected as in the weights: {have}; recipe {recipe.name} has {wanted}; {fix}"
        emit(notice(text))
    if file.name == BEST_FILE and data.val is not None and data.val == data.test:
        text = (
            f"these weights were chosen on {data.test} (data.val), so accuracy on it is too high; "
            "evaluate another list, or take --which newest"
        )
        emit(warning(text))
    recipe = with_pixels_of(recipe, spec, source=file)
    if saved is not None:
        recipe = replace(recipe, finetune=replace(recipe.finetune, selection=saved))
    model.recipe = recipe
    return model, spec, recipe


def _open_onnx(file: Path, recipe: Recipe, emit: Emit) -> ExportedClassifier:
    """Open an ONNX file that takes the clips of a recipe; report if their strides differ."""
    model = open_exported(file)
    _check_recipe(recipe, model.spec, source=file)
    data = recipe.data
    frames = model.spec.frames
    height, width = model.spec.size
    if (data.frames, data.frame_size) != (frames, model.spec.size):
        clips = " x ".join(map(str, (data.frames, *data.frame_size)))
        fix = f"add --set data.frames={frames} --set data.size=[{height},{width}]"
        raise CheckpointError(
            f"{file}: takes clips of {frames} x {height} x {width}, recipe {recipe.name} has {clips}; {fix}"
        )
    stride = recipe.finetune.stride
    if model.knows_stride and stride != model.clip.stride:
        text = f"the clips have a stride of {stride}, {file} was exported for {model.clip.stride}"
        emit(notice(f"{text}; --set finetune.stride={model.clip.stride} changes it"))
    return model


def _check_recipe(recipe: Recipe, spec: ClipSpec, *, source: Path) -> None:
    """Raise CheckpointError if the tubelets, heads or classes of classifier and recipe differ."""
    data = recipe.data
    head = spec.only_head
    pairs: dict[str, tuple[Any, Any]] = {}
    if isinstance(spec, ModelSpec):
        pairs["model.tubelet"] = (spec.model.tubelet, recipe.model.tubelet)
    if data.heads is not None:
        pairs["data.heads"] = (head_settings(spec.heads) or {}, data.heads)
    elif head is not None:
        pairs["data.task"] = (head.task, data.task)
        pairs["data.num_classes"] = (head.outputs, data.num_classes or head.outputs)
    for key, (saved, wanted) in pairs.items():
        if saved != wanted or (key == "data.heads" and list(saved) != list(wanted)):  # order counts
            raise CheckpointError(f"{source}: trained with {key} {saved}, the recipe has {wanted}")
