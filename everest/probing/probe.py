"""The probes of a frozen encoder, and how right each of them is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from everest.data.stages import labelled_samples
from everest.errors import DataError, unknown_name
from everest.inference import Model
from everest.probing.attentive import attentive
from everest.probing.encoded_set import EncodedSet, encode_set
from everest.probing.shallow import linear, nearest_neighbours
from everest.scores import Scores, accuracies
from everest.system.events import Report, notice

TOLD: Final = ("top1", "top5", "mean_class_accuracy")  # of everest.scores.accuracies

Answer = tuple[NDArray[np.float32], dict[str, Any]]  # (test videos, classes) probabilities; settings found
Probe = Callable[[Model, EncodedSet, NDArray[np.int64], EncodedSet, int], Answer]


def _knn(
    model: Model, train: EncodedSet, labels: NDArray[np.int64], test: EncodedSet, classes: int
) -> Answer:
    return nearest_neighbours(train.features, labels, test.features, classes)


def _linear(
    model: Model, train: EncodedSet, labels: NDArray[np.int64], test: EncodedSet, classes: int
) -> Answer:
    return linear(train.features, labels, test.features, classes, seed=model.recipe.train.seed)


def _attentive(
    model: Model, train: EncodedSet, labels: NDArray[np.int64], test: EncodedSet, classes: int
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


def probe(model: Model, names: Sequence[str], *, batch: int, report: Report) -> dict[str, Any]:
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
    train_samples, test_samples, classes = labelled_samples(model.recipe)
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
    model: Model,
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
