"""Which metric chooses the best weights, by what is labeled. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from everest.config.heads import Heads

# The metric of a head by its task, where only one is used: the best weights, tables of several heads.
MEASURED_BY: Final = {"single-label": "top1", "multi-label": "map", "regression": "mae"}
BACKGROUND: Final = "background"  # a class that states that nothing happens
OVER_BACKGROUND: Final = "mean_class_accuracy"  # in place of top-1, if a class is background
ALLOWED: Final = {
    "single-label": ("top1", "mean_class_accuracy", "macro_f1", "loss"),
    "multi-label": ("map", "macro_f1", "loss"),
    "regression": ("mae", "loss"),
}


def best_metric(heads: Heads, chosen: str | None, names: Collection[str] | None) -> str:
    """The metric that chooses the best weights: `finetune.best`, or that of the task.

    With a class `background`, which most windows of a recording have, it is the mean class accuracy. Of
    several heads it is whether all are right, or the loss if some do not name a class.

    Args:
        names: of the classes, if they are known.
    """
    if chosen is not None:
        return chosen
    if len(heads) == 1 and heads[0].task == "single-label" and BACKGROUND in (names or ()):
        return OVER_BACKGROUND
    if len(heads) == 1:
        return MEASURED_BY[heads[0].task]
    return "top1" if all(head.task == "single-label" for head in heads) else "loss"
