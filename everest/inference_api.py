"""Predict, extract and evaluate as functions for notebooks, with the results of the commands.

A model is one of `everest.load_model` or `everest.create_model`. It computes on the device where it is,
and is left in evaluation mode. Nothing else of the process changes: float32 products have the precision
that `torch.set_float32_matmul_precision` has set, where the commands have the highest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from everest.evaluation.evaluation import EvaluationFiles, evaluate_classifier
from everest.inference.features import VideoFeatures, compute_features
from everest.inference.opened_model import OpenedModel
from everest.inference.predictions import open_predictions
from everest.inference.videos import Batching
from everest.lists.inputs import find_samples
from everest.lists.sample import Sample
from everest.models.base import ClipModel
from everest.models.classifier import Classifier
from everest.system.events import Emit, ignore_event
from everest.system.storage import parse_location

Videos = str | Path | Sequence[str | Path]


def predict(
    model: Classifier,
    videos: Videos,
    *,
    top: int | None = None,
    data: str | Path | None = None,
    clips: int | None = None,
    crops: int | None = None,
    keep: float | None = None,
    batch: int = 1,
    workers: int = 0,
    precision: str | None = None,
    emit: Emit = ignore_event,
) -> list[dict[str, Any]]:
    """Predict the most likely classes of videos, or their numbers, as `everest predict --json`.

    Args:
        videos: a video, a folder of videos, a list (.csv, .tsv, .txt), or several of them.
        top: number of classes; None: 5.
        data: the folder that paths in a list are relative to; None: the folder of the list.
        clips, crops: views of a video; None: as in the evaluation of the model's recipe.
        keep: the ratio of the tokens to encode; None: as in training.
        batch: videos in one forward pass.
        workers: processes that read videos.
        precision: auto, fp32, bf16 or fp16; None: as in training.
        emit: receives the progress and notices (everest.system.events).
    Returns:
        `{"video", "predictions": [{"label", "index", "probability"}, …]}` for each video. A multi-label class
        also has `present`, whether its probability is above its threshold; a number is `[{"value"}]`. With
        several heads `heads` has such a list for each head. An unreadable video has `error` instead.
    Raises:
        CheckpointError: the model is not a classifier, or its outputs are not finite.
        DataError: a list cannot be used, or a folder has no video.
        RecipeError: `keep` leaves no token; `top` of a model that predicts numbers only;
            `top` or `batch` is below 1.
    """
    opened = OpenedModel.of(model, clips=clips, crops=crops, keep=keep, workers=workers, precision=precision)
    batching = Batching(batch=batch, emit=emit)
    with open_predictions(opened, samples_of(videos, data), batching, top=top) as rows:
        assert rows is not None  # this is the only process
        return rows


def extract(
    model: ClipModel,
    videos: Videos,
    *,
    level: str = "video",
    data: str | Path | None = None,
    clips: int | None = None,
    crops: int | None = None,
    keep: float | None = None,
    batch: int = 1,
    workers: int = 0,
    precision: str | None = None,
    emit: Emit = ignore_event,
) -> VideoFeatures:
    """Compute the features of videos in memory, as `everest extract` writes them.

    Args:
        level: `video`, the mean over the views of a video; `views`; or `tokens`. The features of a view are
            the input of a classifier's head; of another model the mean of the tokens and their change.
        keep: None: all tokens of an autoencoder or of a converted encoder. For all else see `predict`.
    Raises:
        CheckpointError: the features are not finite.
        DataError: no video can be read, a list cannot be used, or a folder has no video.
        RecipeError: an unknown level, `keep` leaves no token, or `batch` is below 1.
    """
    opened = OpenedModel.of(model, clips=clips, crops=crops, keep=keep, workers=workers, precision=precision)
    batching = Batching(batch=batch, emit=emit)
    return compute_features(opened, samples_of(videos, data), batching, level=level)


def evaluate(
    model: Classifier,
    *,
    data: str | Path | None = None,
    test: str | None = None,
    clips: int | None = None,
    crops: int | None = None,
    predictions: str | Path | None = None,
    page: str | Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    precision: str | None = None,
    emit: Emit = ignore_event,
) -> dict[str, Any]:
    """Evaluate a classifier on a labeled set of videos, as `everest eval --json`.

    Args:
        data: the folder of the list and the videos; None: as in the model's recipe.
        test: the list, or a folder of class folders, relative to `data`; None: as in the recipe.
        clips, crops: views of a video; None: as in the recipe.
        predictions: a CSV file to write, one row a video.
        page: a folder to write a page with figures to.
        overwrite: replace these files.
        workers: processes that read videos; None: as in the recipe.
        precision, emit: see `predict`.
    Returns:
        The document of `everest eval --json`: the metrics, of classes in percent, and how they were measured.
    Raises:
        CheckpointError: the model is not a classifier, or its outputs are not finite.
        DataError: the videos or labels cannot be used, or too many videos are unreadable.
        RecipeError: an output file exists already.
    """
    opened = OpenedModel.of(model, clips=clips, crops=crops, workers=workers, precision=precision)
    model, recipe = opened.classifier, opened.recipe
    root = recipe.data.root if data is None else str(data)
    root = str(parse_location(root).resolve())
    recipe = replace(recipe, data=replace(recipe.data, root=root, test=test or recipe.data.test))
    files = EvaluationFiles(
        predictions=None if predictions is None else Path(predictions),
        page=None if page is None else Path(page),
        overwrite=overwrite,
        options=("predictions", "page"),
    )
    files.check(model.file)
    return evaluate_classifier(model, model.spec, recipe, opened.runtime, emit=emit, files=files)[0]


def samples_of(videos: Videos, data: str | Path | None) -> list[Sample]:
    paths = [videos] if isinstance(videos, str | Path) else videos
    return find_samples([Path(path) for path in paths], root=None if data is None else Path(data))
