"""Probes: how well simple classifiers of a frozen encoder's features work on a labeled set of videos.

N videos, V views, K encoded tokens per view, D width.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import Head
from everest.data.bad_videos import refuse_too_many
from everest.data.labels import Label
from everest.data.samples import Sample
from everest.data.stages import labeled_samples
from everest.errors import DataError, EnvironmentProblem, unknown_name
from everest.inference.features import add_rows
from everest.inference.metrics import measure
from everest.inference.model import OpenedModel
from everest.inference.over_videos import Values
from everest.inference.predicted import Predictions, label_array
from everest.inference.probe_heads import attentive, linear, nearest_neighbors
from everest.system.events import Report, notice
from everest.system.row_store import open_row_store

PROBES: Final = ("knn", "linear", "attentive")


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSet:
    """The readable videos of a list."""

    videos: list[str]
    labels: list[tuple[Label, ...]]  # of each video, one per head
    features: NDArray[np.float32]  # (N, D), the mean over a video's views of the pooled feature
    tokens: NDArray[np.float32] | None  # (N, V * K, D), memory-mapped
    num_skipped: int


def encode_set(
    model: OpenedModel,
    samples: Sequence[Sample],
    folder: Path,
    *,
    with_tokens: bool,
    batch: int,
    report: Report,
) -> EncodedSet:
    """Encode the views of every video once, without augmentation.

    Args:
        folder: holds the rows as long as the set is used.
        with_tokens: keep each token, too.
        batch: videos in one forward pass.
    Raises:
        DataError: more videos than `data.max_bad` allows are unreadable.
        EnvironmentProblem: not enough disk space for the tokens.
    """
    if with_tokens:
        views, disk = model.views, folder.parent
        blank = torch.zeros(1, views.channels, views.frames, *views.size, dtype=torch.uint8)
        needed = len(samples) * views.num_views * model.encode(blank).tokens.nbytes
        free = psutil.disk_usage(str(disk)).free
        if needed > free:
            raise EnvironmentProblem(
                f"the tokens of {len(samples)} videos need {needed / 2**30:.3g} GiB, {disk} has "
                f"{free / 2**30:.3g} GiB free; name another disk by TMPDIR, lower --keep, or leave the "
                "attentive probe out: --probes knn,linear"
            )

    def row_of(views: Values) -> dict[str, Tensor]:
        tokens = {"tokens": views["tokens"].flatten(0, 1)} if with_tokens else {}  # (V * K, D)
        return {"features": views["pooled"].mean(dim=0), **tokens}

    recipe = model.recipe
    with open_row_store(folder, {}, batch=batch) as store:
        add_rows(store, model, samples, row_of, batch=batch, workers=recipe.train.num_workers, report=report)
        skipped = [(video, problem) for video, problem in store.samples if problem is not None]
        refuse_too_many(skipped, requested=len(samples), max_bad=recipe.data.max_bad)
        readable = [
            sample for sample, (_, problem) in zip(samples, store.samples, strict=True) if problem is None
        ]
        arrays = store.arrays()
    return EncodedSet(
        videos=[sample.video_id for sample in readable],
        labels=[sample.labels for sample in readable],
        features=np.array(arrays["features"]),
        tokens=arrays.get("tokens"),
        num_skipped=len(skipped),
    )


def probe(model: OpenedModel, names: Sequence[str], *, batch: int, report: Report) -> dict[str, Any]:
    """Evaluate an encoder on the labeled videos of its recipe's `data.train` and `data.test`.

    Args:
        names: of PROBES.
        batch: videos in one forward pass.
    Returns:
        In percent, `probes` with the accuracies of each probe, `chance` and `majority` (always answering the
        most frequent class of the test set). Several heads have these under `heads`, by name.
    Raises:
        DataError: too many videos are unreadable, or all videos for training are of one class.
        RecipeError: an unknown probe.
        EnvironmentProblem: not enough disk space for the tokens of the attentive probe.
    """
    for name in names:
        if name not in PROBES:
            raise unknown_name("--probes", name, PROBES)
    started = time.monotonic()
    train_samples, test_samples, classes = labeled_samples(model.recipe)
    with tempfile.TemporaryDirectory(prefix="everest-probe-") as folder:
        train, test = (
            encode_set(
                model,
                samples,
                Path(folder) / part,
                with_tokens="attentive" in names,
                batch=batch,
                report=report,
            )
            for part, samples in (("train", train_samples), ("test", test_samples))
        )
        results = {
            head.name: _probe_head(model, names, train, test, position, head, report)
            for position, head in enumerate(classes.heads)
        }
    views = model.recipe.eval
    return {
        **results.get("", {"heads": results}),
        "train": len(train.videos),
        "test": len(test.videos),
        "skipped": train.num_skipped + test.num_skipped,
        "views": {"clips": views.clips, "crops": views.crops},
        "seed": model.recipe.train.seed,
        "seconds": round(time.monotonic() - started, 2),
        "checkpoint": str(model.file),
        "recipe": model.recipe.name,
    }


def _probe_head(
    model: OpenedModel,
    names: Sequence[str],
    train: EncodedSet,
    test: EncodedSet,
    position: int,
    head: Head,
    report: Report,
) -> dict[str, Any]:
    """Return the results of all probes for one head."""
    labels, seed = label_array([row[position] for row in train.labels], head), model.recipe.train.seed
    num_classes = head.outputs
    if len(np.unique(labels)) < 2:
        raise DataError("data.train: its videos are of one class; a probe needs two or more")
    results, majority = {}, 0.0
    for name in names:
        report(notice(f"{name} probe of {len(train.videos)} videos"))
        if name == "knn":
            output = nearest_neighbors(train.features, labels, test.features, num_classes)
        elif name == "linear":
            output = linear(train.features, labels, test.features, num_classes, seed=seed)
        else:
            assert train.tokens is not None
            assert test.tokens is not None
            attention, device = model.module.encoder.num_heads, model.module.device
            output = attentive(
                train.tokens, labels, test.tokens, num_classes, heads=attention, seed=seed, device=device
            )
        probabilities, settings = output
        predictions = Predictions(
            videos=test.videos,
            labels=[(row[position],) for row in test.labels],
            outputs=probabilities[:, None],  # (videos, one view, classes)
            skipped=[],
            heads=(replace(head, name=""),),
        )
        accuracy = measure(predictions)
        shown = {key: accuracy[key] for key in ("top1", "top5", "mean_class_accuracy")}
        results[name] = {**shown, **settings}
        majority = accuracy["majority_top1"]
    return {"probes": results, "chance": round(100 / num_classes, 4), "majority": majority}
