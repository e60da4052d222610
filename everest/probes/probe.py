"""Probes: how well simple classifiers on a frozen encoder's features work on a labeled set of videos.

The same classifiers on the features of baselines show what the encoder adds.

N videos, K encoded tokens per clip, D width; B clips, C channels, T frames, H W pixels, P positions of
an image.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from everest.config.heads import MULTI_LABEL, Head
from everest.data.bad_videos import refuse_too_many
from everest.data.randomness import Purpose, seed_at
from everest.data.recipe_clips import labeled_samples
from everest.errors import DataError, unknown_name
from everest.inference.jobs import add_rows
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import ViewTensors
from everest.inference.videos import Batching
from everest.lists.sample import Sample
from everest.metrics.head_metrics import compute_metrics, find_chance
from everest.metrics.predictions import Predictions, label_array
from everest.models.base import ClipModel
from everest.models.image_classifier import difference_image
from everest.probes.classifiers import (
    RETRIEVED_VIDEOS,
    LabeledFeatures,
    Labels,
    attentive,
    compare_sources,
    measure_precision,
    nearest_neighbors,
)
from everest.probes.linear import linear
from everest.system.events import Emit, notice, warning
from everest.system.parts import open_parts
from everest.system.types import Floats

ATTENTIVE: Final = "attentive"  # the probe on tokens; the other probes use pooled features
METRICS_OF_TASK: Final = {  # the first metric has a chance level
    "single-label": ("top1", "top5", "mean_class_accuracy"),
    MULTI_LABEL: ("map", "micro_f1", "macro_f1"),
    "regression": ("mae", "rmse", "r2", "spearman"),
}
DIFFERENCE_SIDE: Final = 32  # heuristic: rows and columns of a difference image
# From features, labels, test features and a head to outputs (everest.probes.classifiers).
ClassifierFunction = Callable[[Floats, Labels, Floats, Head], Floats]
FeatureFunction = Callable[[Tensor], Tensor]  # from clips (B, C, T, H, W) uint8 to features (B, D)

PROBES: Final[dict[str, Callable[[OpenedModel], ClassifierFunction]]] = {
    "knn": lambda model: nearest_neighbors,
    "linear": lambda model: partial(linear, seed=model.recipe.train.seed),
    ATTENTIVE: lambda model: partial(
        attentive,
        heads=model.transformer.encoder.num_heads,
        seed=model.recipe.train.seed,
        device=model.module.device,
    ),
}


def make_random_encoder(model: OpenedModel) -> FeatureFunction:
    """Return the features of a model of the same shape with new weights, seeded by the recipe."""
    with torch.random.fork_rng(devices=[]):  # it is built on the CPU
        torch.manual_seed(seed_at(model.recipe.train.seed, Purpose.WEIGHTS))
        module: ClipModel = model.module.spec.without_files().build()
    module.recipe, module.file = model.recipe, model.module.file
    untrained = replace(model, module=module.eval().to(model.module.device))
    return lambda clips: untrained.features(clips)["pooled"]


BASELINES: Final[dict[str, Callable[[OpenedModel], FeatureFunction]]] = {
    "random_encoder": make_random_encoder,
    "difference_image": lambda model: partial(difference_image, side=DIFFERENCE_SIDE),
}


class EncodedSet(NamedTuple):
    """The readable videos of a list."""

    samples: list[Sample]
    # `pooled` (N, D), the features of each baseline (N, …), and maybe `tokens` (N, K, D), memory-mapped
    features: dict[str, Floats]
    num_skipped: int


def encode_set(
    model: OpenedModel,
    samples: Sequence[Sample],
    folder: Path,
    *,
    with_tokens: bool,
    batch: int,
    emit: Emit,
) -> EncodedSet:
    """Encode one view of every video, without augmentation, by the encoder and the baselines.

    The folder holds the rows while the set is used; a forward pass has `batch` videos.
    """
    baselines = {name: baseline(model) for name, baseline in BASELINES.items()}

    def compute(clips: Tensor) -> ViewTensors:
        return model.features(clips) | {name: features_of(clips) for name, features_of in baselines.items()}

    def row_of(views: ViewTensors) -> dict[str, Tensor]:
        names = ("pooled", *baselines, *(["tokens"] if with_tokens else []))
        return {name: views[name][0] for name in names}

    with open_parts(folder, {}) as store:
        joined = add_rows(store, model, samples, compute, row_of, Batching(batch=batch, emit=emit))
        assert joined is not None  # there is only one process
        problems = [result.reason if result else None for (result,) in joined.results]
        skipped = [(sample.video_id, text) for sample, text in zip(samples, problems, strict=True) if text]
        refuse_too_many(skipped, requested=len(samples), max_bad=model.recipe.data.max_bad)
        arrays = joined.arrays
    readable = [sample for sample, text in zip(samples, problems, strict=True) if text is None]
    features = {name: rows if name == "tokens" else np.array(rows) for name, rows in arrays.items()}
    return EncodedSet(readable, features, len(skipped))


def probe(model: OpenedModel, names: Sequence[str], *, batch: int, emit: Emit) -> dict[str, Any]:
    """Evaluate an encoder by the named `PROBES` on its recipe's labeled `data.train` and `data.test`.

    Returns:
        `probes` with the metrics of each probe (METRICS_OF_TASK), `baselines` with those of k-NN and the
        linear probe for each baseline, and `chance` for the first metric. A single-label head has `majority`
        (always predicting the most frequent class of the test set) and `retrieval`: `precision@10`, the
        fraction of the class among the ten nearest training videos of other groups, the same for the
        `baselines`, and `by_class` and `by_group` (`compare_sources`). Class metrics are in percent. Several
        heads have these under `heads`, by name.
    """
    started = time.monotonic()
    for name in names:
        if name not in PROBES:
            raise unknown_name("--probes", name, PROBES)
    classifiers = {name: PROBES[name](model) for name in names}
    train_samples, test_samples, classes = labeled_samples(model.recipe)
    for position, head in enumerate(classes.heads):  # checked before the slow encoding
        _read_training_labels(train_samples, position, head)
    known = {name for sample in train_samples for name in (sample.video_id, sample.group_or_path)}
    shared = [sample.path for sample in test_samples if known & {sample.video_id, sample.group_or_path}]
    if shared:
        text = (
            f"{len(shared)} of {len(test_samples)} test videos are also training videos, or of the "
            f"same groups or files, such as {shared[0]}: the accuracies are too high; `everest prepare split "
            "--group` keeps them apart"
        )
        emit(warning(text))
    encode = partial(encode_set, model, with_tokens=ATTENTIVE in names, batch=batch, emit=emit)
    with tempfile.TemporaryDirectory(prefix="everest-probe-") as folder:
        train = encode(train_samples, Path(folder) / "train")
        test = encode(test_samples, Path(folder) / "test")
        results = {
            head.name: _probe_head(classifiers, train, test, position, head, emit)
            for position, head in enumerate(classes.heads)
        }
    return {
        **results.get("", {"heads": results}),
        "train": len(train.samples),
        "test": len(test.samples),
        "skipped": train.num_skipped + test.num_skipped,
        "views": {"clips": 1, "crops": 1},
        "seed": model.recipe.train.seed,
        "seconds": round(time.monotonic() - started, 2),
        "checkpoint": str(model.file),
        "recipe": model.recipe.name,
    }


def _read_training_labels(samples: Sequence[Sample], position: int, head: Head) -> Labels:
    """Read the labels of a head; raise DataError if there is nothing to learn."""
    labels = label_array([sample.labels[position] for sample in samples], head)
    where = f"data.train: head {head.name}" if head.name else "data.train"
    if len(np.unique(labels, axis=0)) < 2:
        raise DataError(f"{where}: all videos have the same label; a probe needs two or more")
    return labels


def _probe_head(
    classifiers: Mapping[str, ClassifierFunction],
    train: EncodedSet,
    test: EncodedSet,
    position: int,
    head: Head,
    emit: Emit,
) -> dict[str, Any]:
    """Return the results of all probes for one head; see `probe`."""
    labels = _read_training_labels(train.samples, position, head)
    heads = (replace(head, name=""),)
    test_labels = [(sample.labels[position],) for sample in test.samples]
    videos = [sample.video_id for sample in test.samples]
    shown = METRICS_OF_TASK[head.task]

    def evaluate(name: str, kind: str) -> dict[str, Any]:
        """Compute the metrics of a probe on one kind of features."""
        outputs = classifiers[name](train.features[kind], labels, test.features[kind], head)
        one_view = outputs[:, None]  # (videos, views, outputs)
        tested = Predictions(videos=videos, labels=test_labels, outputs=one_view, skipped=[], heads=heads)
        metrics = compute_metrics(tested)
        return {key: metrics[key] for key in shown}

    probes = {}
    for name in classifiers:
        emit(notice(f"{name} probe of {len(train.samples)} videos"))
        probes[name] = evaluate(name, "tokens" if name == ATTENTIVE else "pooled")
    pooled = [name for name in classifiers if name != ATTENTIVE]
    baselines = {kind: {name: evaluate(name, kind) for name in pooled} for kind in BASELINES}
    result = {"probes": probes, "baselines": baselines, "chance": find_chance(shown[0], heads, test_labels)}
    if head.task == "single-label":
        result["majority"] = find_chance("majority_top1", heads, test_labels)
        by_kind = {
            kind: [LabeledFeatures.of(part.features[kind], part.samples, position) for part in (test, train)]
            for kind in ("pooled", *BASELINES)
        }
        precision = {kind: measure_precision(*parts) for kind, parts in by_kind.items()}
        by_class, by_group = compare_sources(by_kind["pooled"][0]) or (None, None)
        result["retrieval"] = {
            f"precision@{RETRIEVED_VIDEOS}": precision.pop("pooled"),
            "baselines": precision,
            "by_class": by_class,
            "by_group": by_group,
        }
    return result
