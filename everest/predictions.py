"""The classes of videos, by the mean of their views' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from everest.data.classes import Classes
from everest.data.samples import Sample
from everest.inference import Model, over_videos
from everest.system.events import Report


def predict(
    model: Model, samples: Sequence[Sample], *, top: int, batch: int, workers: int, report: Report
) -> list[dict[str, Any]]:
    """The `top` most likely classes of every video.

    Args:
        batch: videos in one pass.
    Returns:
        `{"video", "predictions": [{"label", "index", "probability"}, …]}` each, in the order given; of
        several heads `heads` has such a list for each; what could not be read has `error` instead.
    Raises:
        CheckpointError: the model is no classifier.
    """
    classes = model.classes
    done = over_videos(
        model,
        samples,
        lambda clips: {"probabilities": model.probabilities(clips)},
        batch=batch,
        workers=workers,
        report=report,
    )
    return [
        {"video": sample.video_id, "error": values}
        if isinstance(values, str)
        else {"video": sample.video_id, **most_likely(values["probabilities"].mean(dim=0), classes, top)}
        for pairs in done
        for sample, values in pairs
    ]


def most_likely(probabilities: Tensor, classes: Classes, top: int) -> dict[str, Any]:
    """`predictions` of (classes,) probabilities, or under `heads` those of each of several."""
    if not classes.heads:
        return {"predictions": _best(probabilities, classes, top)}
    parts = probabilities.split(list(classes.heads.values()))
    return {
        "heads": {name: _best(part, classes, top) for name, part in zip(classes.heads, parts, strict=True)}
    }


def _best(probabilities: Tensor, classes: Classes, top: int) -> list[dict[str, Any]]:
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        {"label": classes.name(index), "index": index, "probability": round(probability, 6)}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
