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

from everest.config.heads import MULTI_LABEL, Head
from everest.data.bad_videos import refuse_too_many
from everest.data.recipe_clips import labeled_samples
from everest.errors import DataError, EnvironmentProblem, unknown_name
from everest.inference.features import add_rows
from everest.inference.model import OpenedModel
from everest.inference.row_store import open_row_store
from everest.inference.videos import ViewTensors
from everest.lists.sample import Sample
from everest.metrics.metrics import measure
from everest.metrics.names import METRICS
from everest.metrics.predicted import Predictions, label_array
from everest.probes import measures
from everest.probes.baselines import BASELINES
from everest.probes.classifiers import Floats, Labels, attentive, linear, nearest_neighbors
from everest.probes.measures import LabeledFeatures
from everest.system.events import Report, notice

PROBES: Final = ("knn", "linear", "attentive")
SHOWN: Final = {  # metrics by task; the first has a chance level
    "single-label": ("top1", "top5", "mean_class_accuracy"),
    MULTI_LABEL: ("map", "micro_f1", "macro_f1"),
    "regression": ("mae", "rmse", "r2", "spearman"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSet:
    """The readable videos of a list."""

    samples: list[Sample]
    features: NDArray[np.float32]  # (N, D), the mean over a video's views of the pooled feature
    baselines: dict[str, NDArray[np.float32]]  # (N, …) features of the baselines, by name
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
    """Encode the views of every video once, without augmentation, also by the baselines.

    Args:
        folder: holds the rows as long as the set is used.
        with_tokens: keep each token, too.
        batch: videos in one forward pass.
    """
    if with_tokens:
        views = model.views
        disk = folder.parent
        blank = torch.zeros(1, views.channels, views.frames, *views.size, dtype=torch.uint8)
        needed = len(samples) * views.num_views * model.encode(blank).tokens.nbytes
        free = psutil.disk_usage(str(disk)).free
        if needed > free:
            raise EnvironmentProblem(
                f"the tokens of {len(samples)} videos need {needed / 2**30:.3g} GiB, {disk} has "
                f"{free / 2**30:.3g} GiB free; name another disk by TMPDIR, or leave the attentive probe "
                "out: --probes knn,linear"
            )

    baselines = {name: baseline(model) for name, baseline in BASELINES.items()}

    def compute(clips: Tensor) -> ViewTensors:
        return model.encode(clips)._asdict() | {name: of(clips) for name, of in baselines.items()}

    def row_of(views: ViewTensors) -> dict[str, Tensor]:
        tokens = {"tokens": views["tokens"].flatten(0, 1)} if with_tokens else {}  # (V * K, D)
        return {name: views[name].mean(dim=0) for name in ("pooled", *baselines)} | tokens

    recipe = model.recipe
    with open_row_store(folder, {}, batch=batch) as store:
        add_rows(store, model, samples, row_of, batch=batch, report=report, compute=compute)
        skipped = [(video, problem) for video, problem in store.entries if problem is not None]
        refuse_too_many(skipped, requested=len(samples), max_bad=recipe.data.max_bad)
        pairs = zip(samples, store.entries, strict=True)
        arrays = store.arrays()
    return EncodedSet(
        samples=[sample for sample, (_, problem) in pairs if problem is None],
        features=np.array(arrays["pooled"]),
        baselines={name: np.array(arrays[name]) for name in baselines},
        tokens=arrays.get("tokens"),
        num_skipped=len(skipped),
    )


def probe(model: OpenedModel, names: Sequence[str], *, batch: int, report: Report) -> dict[str, Any]:
    """Evaluate an encoder on the labeled videos of its recipe's `data.train` and `data.test`.

    Args:
        names: of PROBES.
        batch: videos in one forward pass.
    Returns:
        `probes` with the metrics of each probe (SHOWN), `baselines` with the same of k-NN and of the linear
        probe for each baseline, and `chance` of the first metric. A single-label head has `majority` (always
        answering the most frequent class of the test set) and `retrieval`: `precision@10`, the share of the
        class among the ten nearest training videos of other groups, the same of the `baselines`, and
        `by_class` and `by_group` (measures.class_and_group). Metrics of classes are in percent. Several
        heads have these under `heads`, by name.
    """
    for name in names:
        if name not in PROBES:
            raise unknown_name("--probes", name, PROBES)
    started = time.monotonic()
    train_samples, test_samples, classes = labeled_samples(model.recipe)
    for position, head in enumerate(classes.heads):  # before the videos are encoded, which takes long
        _training_labels(train_samples, position, head)
    _report_shared(train_samples, test_samples, report)
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
        "train": len(train.samples),
        "test": len(test.samples),
        "skipped": train.num_skipped + test.num_skipped,
        "views": {"clips": views.clips, "crops": views.crops},
        "seed": model.recipe.train.seed,
        "seconds": round(time.monotonic() - started, 2),
        "checkpoint": str(model.file),
        "recipe": model.recipe.name,
    }


def _report_shared(train: Sequence[Sample], test: Sequence[Sample], report: Report) -> None:
    """Warn of test videos that are training videos, or of the same groups or files."""
    known = {sample.video_id for sample in train} | {sample.source for sample in train}
    shared = [sample.path for sample in test if known & {sample.video_id, sample.source}]
    if shared:
        report(
            notice(
                f"warning: {len(shared)} of {len(test)} test videos are also training videos, or of the same "
                f"groups or files, such as {shared[0]}: the accuracies are too high; `everest prepare split "
                "--group` keeps them apart"
            )
        )


def _probe_head(
    model: OpenedModel,
    names: Sequence[str],
    train: EncodedSet,
    test: EncodedSet,
    position: int,
    head: Head,
    report: Report,
) -> dict[str, Any]:
    """Return the results of all probes for one head; see `_training_labels` for errors."""
    seed = model.recipe.train.seed
    labels = _training_labels(train.samples, position, head)
    references: dict[str, float] = {}  # those of the labels alone are the same for every probe

    def measured(outputs: Floats) -> dict[str, Any]:
        predictions = Predictions(
            videos=[sample.video_id for sample in test.samples],
            labels=[(sample.labels[position],) for sample in test.samples],
            outputs=outputs[:, None],  # (videos, one view, outputs)
            skipped=[],
            heads=(replace(head, name=""),),
        )
        metrics = measure(predictions)
        references.update(metrics)
        return {key: metrics[key] for key in SHOWN[head.task]}

    results: dict[str, dict[str, Any]] = {}
    baselines: dict[str, dict[str, Any]] = {baseline: {} for baseline in train.baselines}
    for name in names:
        report(notice(f"{name} probe of {len(train.samples)} videos"))
        if name == "attentive":  # it takes tokens, which baselines do not have
            assert train.tokens is not None
            assert test.tokens is not None
            heads, device = model.module.encoder.num_heads, model.module.device
            outputs = attentive(
                train.tokens, labels, test.tokens, head, heads=heads, seed=seed, device=device
            )
            results[name] = measured(outputs)
            continue
        results[name] = measured(_vote_or_fit(name, train.features, labels, test.features, head, seed))
        for baseline, rows in baselines.items():
            features, tested = train.baselines[baseline], test.baselines[baseline]
            rows[name] = measured(_vote_or_fit(name, features, labels, tested, head, seed))
    chance = METRICS[SHOWN[head.task][0]].chance
    assert chance is not None
    result = {"probes": results, "baselines": baselines, "chance": references[chance]}
    if head.task != "single-label":
        return result
    test_labels = label_array([sample.labels[position] for sample in test.samples], head)
    retrieval = _retrieval(train, labels, test, test_labels)
    return result | {"majority": references["majority_top1"], "retrieval": retrieval}


def _vote_or_fit(
    name: str, features: Floats, labels: NDArray[Any], tested: Floats, head: Head, seed: int
) -> Floats:
    """The outputs of the probe `knn` or `linear` for the features `tested`."""
    if name == "knn":
        return nearest_neighbors(features, labels, tested, head)
    return linear(features, labels, tested, head, seed=seed)


def _training_labels(samples: Sequence[Sample], position: int, head: Head) -> NDArray[Any]:
    """The labels of a head; raises DataError if there is nothing to learn."""
    labels = label_array([sample.labels[position] for sample in samples], head)
    place = f"data.train: head {head.name}" if head.name else "data.train"
    if len(np.unique(labels, axis=0)) < 2:
        raise DataError(f"{place}: all videos have the same label; a probe needs two or more")
    return labels


def _retrieval(train: EncodedSet, labels: Labels, test: EncodedSet, test_labels: Labels) -> dict[str, Any]:
    """The result `retrieval`, about the nearest videos of each test video."""
    sources = measures.numbered([sample.source for sample in (*train.samples, *test.samples)])
    train_sources, test_sources = np.split(sources, [len(train.samples)])

    def precision(gallery: Floats, queries: Floats) -> float | None:
        return measures.precision_of_nearest(
            LabeledFeatures(queries, test_labels, test_sources),
            LabeledFeatures(gallery, labels, train_sources),
        )

    tested = LabeledFeatures(test.features, test_labels, test_sources)
    by_class, by_group = measures.class_and_group(tested) or (None, None)
    return {
        "precision@10": precision(train.features, test.features),
        "baselines": {name: precision(rows, test.baselines[name]) for name, rows in train.baselines.items()},
        "by_class": by_class,
        "by_group": by_group,
    }
