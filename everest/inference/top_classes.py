"""The predictions for one video or window as plain values: its most likely classes, or its numbers."""

from __future__ import annotations

import math
from typing import Any, Final

from torch import Tensor

from everest.config.heads import MULTI_LABEL, Head, Heads
from everest.errors import RecipeError
from everest.inference.bouts import PLAIN, BoutRules
from everest.lists.classes import Classes

TOP: Final = 5  # classes, unless another number is requested


def check_options(
    heads: Heads,
    *,
    top: int | None = None,
    rules: BoutRules = PLAIN,
    bouts: bool = False,
    annotations: bool = False,
) -> None:
    """Raise RecipeError for an option that goes with no head, or that is out of range.

    Args:
        rules: of the bouts of a timeline.
        bouts: whether bouts are requested in place of windows.
        annotations: whether bouts are requested as a file of annotations.
    """
    background, threshold = rules.background, rules.threshold
    if top is not None and top < 1:
        raise RecipeError(f"top={top}: must be at least 1")
    tasks = {head.task for head in heads}
    if tasks == {"regression"}:
        given = {
            "--top": top is not None,
            "--background": background is not None,
            "--threshold": threshold is not None,
            "--smooth": rules.smooth > 0,
            "--min-seconds": rules.min_seconds > 0,
            "--bouts": bouts,
            "--to": annotations,
        }
        option = next((option for option, is_given in given.items() if is_given), None)
        if option is not None:
            raise RecipeError(f"{option}: goes with classes, and this model predicts numbers; leave it out")
    if threshold is not None and MULTI_LABEL not in tasks:
        raise RecipeError(
            "--threshold: is for multi-label models; this one has one class per window, use --background"
        )
    if threshold is not None and not 0 <= threshold[1] <= threshold[0] <= 1:
        raise RecipeError(
            f"--threshold: must be HIGH,LOW with 1 >= HIGH >= LOW >= 0, not {threshold[0]},{threshold[1]}"
        )
    for option, seconds in (("--smooth", rules.smooth), ("--min-seconds", rules.min_seconds)):
        if not 0 <= seconds < math.inf:
            raise RecipeError(f"{option}: must be a number of seconds from 0 on, not {seconds}")
    if background is not None and "single-label" not in tasks:
        raise RecipeError(
            "--background: is for models with one class per window; this one is multi-label, leave it out"
        )
    if background is not None and not 0 <= background <= 1:
        raise RecipeError(f"--background: must be from 0 to 1, not {background}")


def answers_of(answers: Tensor, classes: Classes, top: int | None) -> dict[str, Any]:
    """Return `predictions` of (outputs,) answers; of several heads under `heads`, by name.

    Of classes the `top` most likely ones, of several classes also whether each is `present`, and from which
    `threshold` on; of a number its `value`.
    """
    parts = answers.split([head.outputs for head in classes.heads])
    predictions = {
        head.name: answers_of_head(part, head, classes, top)
        for head, part in zip(classes.heads, parts, strict=True)
    }
    return {"predictions": predictions[""]} if "" in predictions else {"heads": predictions}


def answers_of_head(answers: Tensor, head: Head, classes: Classes, top: int | None) -> list[dict[str, Any]]:
    """Return the predictions of one head, from its (outputs,) answers; classes in the order of probability.

    Args:
        top: number of classes; None: 5, and all others of a multi-label head that are present.
    """
    if head.task == "regression":
        return [{"value": float(f"{answers.item():.6g}")}]
    several, thresholds, count = head.task == MULTI_LABEL, head.thresholds, top or TOP
    best = answers.topk(len(answers) if several else min(count, len(answers)))
    found: list[dict[str, Any]] = []
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row = {"label": classes.name(index), "index": index, "probability": round(probability, 6)}
        if several:
            row |= {"present": probability >= thresholds[index], "threshold": round(thresholds[index], 6)}
        if len(found) < count or (top is None and row["present"]):
            found.append(row)
    return found
