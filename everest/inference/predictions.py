"""Predictions of videos as plain values: the most likely classes, or numbers.

O outputs of all heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from everest.config.heads import MULTI_LABEL
from everest.errors import OptionError
from everest.inference.jobs import LongJob, add_rows
from everest.inference.opened_model import OpenedModel, check_counts
from everest.inference.pieces import ViewTensors
from everest.inference.videos import Batching
from everest.lists.classes import Classes
from everest.lists.sample import Sample

DEFAULT_TOP: Final = 5  # classes, unless another number is requested


@contextmanager
def open_predictions(
    model: OpenedModel,
    samples: Sequence[Sample],
    batching: Batching,
    *,
    top: int | None,
    output: Path | None = None,
    overwrite: bool = False,
) -> Iterator[list[dict[str, Any]] | None]:
    """Yield the `top` most likely classes of every video, by the mean of its views' probabilities.

    Args:
        top: number of classes; None: 5, and all other present classes of a multi-label head.
        output: the file that the block writes; see `LongJob`.
    Yields:
        `{"video", "predictions": [{"label", "index", "probability"}, …]}` for each, in the order given; see
        `list_predictions` for the predictions of other tasks. With several heads `heads` has such a list for
        each head. An unreadable video has `error` instead. None in a process other than the main one.
    """
    classes = model.classes
    check_top(classes, top)
    job = LongJob(model, samples, batching, {"predict": "videos"}, output=output, overwrite=overwrite)
    job.check_output()
    with job.open() as store:
        rows = add_rows(store, model, samples, model.outputs, mean_outputs, batching)
        if rows is None:
            yield None
            return
        outputs = iter(torch.tensor(rows.arrays.get("outputs", ())))
        yield [
            {"video": sample.video_id, "error": result.reason}
            if result
            else {"video": sample.video_id, **list_predictions(next(outputs), classes, top)}
            for sample, (result,) in zip(samples, rows.results, strict=True)
        ]
        store.remove()


def mean_outputs(views: ViewTensors) -> dict[str, Tensor]:
    """The mean over the views of a video, or of a window."""
    return {"outputs": views["outputs"].mean(dim=0)}


def check_top(classes: Classes, top: int | None) -> None:
    """Raise RecipeError for a number of classes below 1, or of a model that predicts numbers only."""
    check_counts(top=top)
    if top is not None and all(head.task == "regression" for head in classes.heads):
        raise OptionError("top: this model predicts numbers, not classes; leave it out")


def list_predictions(outputs: Tensor, classes: Classes, top: int | None = None) -> dict[str, Any]:
    """Return `predictions` of (O,) outputs of all heads; of several heads under `heads`, by name.

    A head of classes has the `top` most likely ones (None: 5, and all other present classes if multi-label).
    A multi-label head states whether each is `present`, by which `threshold`. A number has its `value`.
    """
    predictions: dict[str, list[dict[str, Any]]] = {}
    k = top or DEFAULT_TOP
    outputs_of_heads = outputs.split([head.outputs for head in classes.heads])
    for head, scores in zip(classes.heads, outputs_of_heads, strict=True):
        if head.task == "regression":
            predictions[head.name] = [{"value": float(f"{scores.item():.6g}")}]
            continue
        ranked = scores.topk(len(scores) if head.task == MULTI_LABEL else min(k, len(scores)))
        rows = []
        for probability, index in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True):
            rows.append({"label": classes.name(index), "index": index, "probability": round(probability, 6)})
            if head.task == MULTI_LABEL:
                threshold = head.thresholds[index]
                rows[-1] |= {"present": probability >= threshold, "threshold": round(threshold, 6)}
        if head.task == MULTI_LABEL:
            rows = rows[:k] + [row for row in rows[k:] if top is None and row["present"]]
        predictions[head.name] = rows
    return {"predictions": predictions[""]} if "" in predictions else {"heads": predictions}
