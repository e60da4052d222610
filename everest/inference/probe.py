"""A labelled set of videos as a frozen encoder sees it.

N videos, V views, K encoded tokens a view, D width.

The probes of a frozen encoder, and how right each of them is.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.data.bad_videos import refuse_too_many
from everest.data.samples import Sample
from everest.data.stages import labeled_samples
from everest.errors import DataError, EnvironmentProblem, unknown_name
from everest.inference.accuracy import Scores, accuracies
from everest.inference.features import add_rows
from everest.inference.model import OpenedModel, Values
from everest.inference.probe_heads import attentive, linear, nearest_neighbours
from everest.system.events import Report, notice
from everest.system.row_store import open_row_store


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSet:
    """The videos of a list that can be read."""

    videos: list[str]
    labels: NDArray[np.int64]  # (N, heads)
    features: NDArray[np.float32]  # (N, D), the mean over a video's views of what everest.encoding pools
    tokens: NDArray[np.float32] | None  # (N, V * K, D), left on the disk
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
        folder: takes the rows, as long as the set is used.
        with_tokens: keep each token, too.
        batch: videos in one pass.
    Raises:
        DataError: more videos than `data.max_bad` allows could not be read.
        EnvironmentProblem: no room for the tokens.
    """
    if with_tokens:
        _refuse_too_many_tokens(model, len(samples), folder)

    def row_of(views: Values) -> dict[str, Tensor]:
        tokens = {"tokens": views["tokens"].flatten(0, 1)} if with_tokens else {}  # (V * K, D)
        return {"features": views["pooled"].mean(dim=0), **tokens}

    settings = model.recipe
    with open_row_store(folder, {}, batch=batch) as store:
        add_rows(store, model, samples, row_of, batch=batch, workers=settings.train.workers, report=report)
        skipped = [(video, problem) for video, problem in store.samples if problem is not None]
        refuse_too_many(skipped, requested=len(samples), max_bad=settings.data.max_bad)
        read = [place for place, (_, problem) in enumerate(store.samples) if problem is None]
        arrays = store.arrays()
    return EncodedSet(
        videos=[samples[place].video_id for place in read],
        labels=np.array([samples[place].labels for place in read], dtype=np.int64),
        features=np.array(arrays["features"]),
        tokens=arrays.get("tokens"),
        num_skipped=len(skipped),
    )


def _refuse_too_many_tokens(model: OpenedModel, num_videos: int, folder: Path) -> None:
    views = model.views
    nothing = torch.zeros(1, 3, views.frames, *views.size, dtype=torch.uint8)
    needed = num_videos * views.num_views * model.encode(nothing).tokens.nbytes
    free = psutil.disk_usage(str(folder.parent)).free
    if needed > free:
        raise EnvironmentProblem(
            f"the tokens of {num_videos} videos need {needed / 2**30:.3g} GiB, {folder.parent} has "
            f"{free / 2**30:.3g} GiB free; name another disk by TMPDIR, lower --keep, or leave the attentive "
            "probe out: --probes knn,linear"
        )


TOLD: Final = ("top1", "top5", "mean_class_accuracy")  # of everest.inference.accuracy.accuracies

Answer = tuple[NDArray[np.float32], dict[str, Any]]  # (test videos, classes) probabilities; settings found
Probe = Callable[[OpenedModel, EncodedSet, NDArray[np.int64], EncodedSet, int], Answer]


def _knn(
    model: OpenedModel, train: EncodedSet, labels: NDArray[np.int64], test: EncodedSet, classes: int
) -> Answer:
    return nearest_neighbours(train.features, labels, test.features, classes)


def _linear(
    model: OpenedModel, train: EncodedSet, labels: NDArray[np.int64], test: EncodedSet, classes: int
) -> Answer:
    return linear(train.features, labels, test.features, classes, seed=model.recipe.train.seed)


def _attentive(
    model: OpenedModel, train: EncodedSet, labels: NDArray[np.int64], test: EncodedSet, classes: int
) -> Answer:
    assert train.tokens is not None
    assert test.tokens is not None
    return attentive(
        train.tokens,
        labels,
        test.tokens,
        classes,
        heads=model.spec.model.backbone_size.heads,
        seed=model.recipe.train.seed,
        device=model.accelerator.device,
    )


PROBES: Final[dict[str, Probe]] = {"knn": _knn, "linear": _linear, "attentive": _attentive}


def probe(model: OpenedModel, names: Sequence[str], *, batch: int, report: Report) -> dict[str, Any]:
    """Judge an encoder by the labelled videos of its recipe's `data.train` and `data.test`.

    Args:
        names: of PROBES.
        batch: videos in one pass.
    Returns:
        In percent, `probes` with each one's accuracies, `chance` and `majority` (always answering the most
        frequent class of the test); of several heads these are under `heads`, by name.
    Raises:
        DataError: too many videos cannot be read, or those for training are of one class.
        RecipeError: an unknown probe.
        EnvironmentProblem: no room for the tokens of the attentive probe.
    """
    for name in names:
        if name not in PROBES:
            raise unknown_name("--probes", name, PROBES)
    began = time.monotonic()
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
        heads = classes.heads or {"": classes.count}
        judged = {
            head: _judge(model, names, train, test, place, count, report)
            for place, (head, count) in enumerate(heads.items())
        }
    views = model.recipe.eval
    return {
        **({"heads": judged} if classes.heads else judged[""]),
        "train": len(train.videos),
        "test": len(test.videos),
        "skipped": train.num_skipped + test.num_skipped,
        "views": {"clips": views.clips, "crops": views.crops},
        "seed": model.recipe.train.seed,
        "seconds": round(time.monotonic() - began, 2),
        "checkpoint": str(model.file),
        "recipe": model.recipe.name,
    }


def _judge(
    model: OpenedModel,
    names: Sequence[str],
    train: EncodedSet,
    test: EncodedSet,
    head: int,
    num_classes: int,
    report: Report,
) -> dict[str, Any]:
    """All probes of one head."""
    labels = train.labels[:, head]
    if len(np.unique(labels)) < 2:
        raise DataError("data.train: its videos are of one class; a probe needs two or more")
    probes, majority = {}, 0.0
    for name in names:
        report(notice(f"{name} probe of {len(train.videos)} videos"))
        probabilities, settings = PROBES[name](model, train, labels, test, num_classes)
        scores = Scores(
            videos=test.videos,
            labels=test.labels[:, head : head + 1],
            probabilities=probabilities[:, None],  # (videos, one view, classes)
            skipped=[],
            heads={},
        )
        found = accuracies(scores)
        probes[name] = {**{key: found[key] for key in TOLD}, **settings}
        majority = found["majority_top1"]
    return {"probes": probes, "chance": round(100 / num_classes, 4), "majority": majority}
