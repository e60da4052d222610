"""The heads of a classifier: their task, their outputs, and the metric that chooses the best weights.

This file does not need torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from everest.config.values import Count, NumClasses, Positive, Ratio, RatioAboveZero, must_be, with_hyphens

TaskName = Literal["single-label", "multi-label", "regression"]
Task = Annotated[TaskName, BeforeValidator(with_hyphens)]

MULTI_LABEL: Final = "multi-label"
DEFAULT_THRESHOLD: Final = 0.5  # least probability of a present multi-label class, unless one was chosen
# The metric of a head where only one is used: to choose the best weights, and in tables of several heads.
METRIC_OF_TASK: Final = {"single-label": "top1", "multi-label": "map", "regression": "mae"}
BACKGROUND: Final = "background"  # the class of windows in which nothing happens
BACKGROUND_METRIC: Final = "mean_class_accuracy"  # replaces top-1 if a class is background
BEST_METRICS_OF_TASK: Final = {
    "single-label": ("top1", "mean_class_accuracy", "macro_f1", "loss"),
    "multi-label": ("map", "macro_f1", "loss"),
    "regression": ("mae", "loss"),
}


def _with_hyphens(head: Any) -> Any:
    """A setting of a head with hyphens in the name of its task, which is its value or its only key."""
    if isinstance(head, dict) and len(head) == 1:
        return {with_hyphens(task): outputs for task, outputs in head.items()}
    return head if isinstance(head, dict) else with_hyphens(head)


HeadSetting = Annotated[
    NumClasses | Literal["regression"] | Annotated[dict[Literal["multi-label"], Count], Field(min_length=1)],
    must_be("a number of classes from 2, {multi-label: N} or regression"),
    BeforeValidator(_with_hyphens),
]
_HeadName = Annotated[str, Field(max_length=80)]  # a report is a file of this name, quoted
HeadSettings = Annotated[dict[_HeadName, HeadSetting], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """When a clip or window is a fault: its score against a normal class is at least the threshold."""

    normal: str  # of several labels, the name of a clip without any
    threshold: RatioAboveZero


@dataclass(frozen=True, kw_only=True)
class Head:
    """One question about a video.

    The outputs of a head are logits: of classes of which one is right (softmax), of classes that may all be
    right or wrong (sigmoid), or one standardized number.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # it is stored with the weights
    name: _HeadName = ""  # empty: the only head
    task: Task = "single-label"
    outputs: Count  # classes; 1: a number
    mean: float = 0.0  # of the numbers in the training set, which are learned as (number - mean) / std
    std: Positive = 1.0
    chosen_thresholds: tuple[Ratio, ...] = ()  # of multi-label classes, on data.val
    alarm: Alarm | None = None  # chosen on videos that the model had not learned from

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability from which each class of a multi-label head is predicted."""
        return self.chosen_thresholds or (DEFAULT_THRESHOLD,) * self.outputs

    @property
    def label_width(self) -> int:
        """The number of values of a label in a batch: one for each multi-label class, else one."""
        return self.outputs if self.task == MULTI_LABEL else 1


Heads = tuple[Head, ...]


def named_heads(settings: Mapping[str, HeadSetting]) -> Heads:
    """The heads of `data.heads`, in its order."""
    heads = []
    for name, setting in settings.items():
        if isinstance(setting, int):
            heads.append(Head(name=name, outputs=setting))
        elif isinstance(setting, str):
            heads.append(Head(name=name, task="regression", outputs=1))
        else:
            heads.append(Head(name=name, task=MULTI_LABEL, outputs=setting[MULTI_LABEL]))
    return tuple(heads)


def head_settings(heads: Heads) -> dict[str, HeadSetting] | None:
    """The inverse of `named_heads`; None for a single head without a name, or no head."""
    if not heads or not heads[0].name:
        return None
    settings: dict[str, HeadSetting] = {}
    for head in heads:
        if head.task == "regression":
            settings[head.name] = "regression"
        else:
            settings[head.name] = {MULTI_LABEL: head.outputs} if head.task == MULTI_LABEL else head.outputs
    return settings


def best_metric(heads: Heads, requested: str | None, class_names: Collection[str] | None) -> str:
    """The metric that chooses the best weights: `finetune.best`, or that of the task.

    With a class `background`, which most windows of a recording have, it is the mean class accuracy. With
    several heads it is the fraction of videos that all heads get right, or the loss unless each names a
    class.

    Args:
        names: of the classes, if they are known.
    """
    if requested is not None:
        return requested
    if len(heads) == 1 and heads[0].task == "single-label" and BACKGROUND in (class_names or ()):
        return BACKGROUND_METRIC
    if len(heads) == 1:
        return METRIC_OF_TASK[heads[0].task]
    return "top1" if all(head.task == "single-label" for head in heads) else "loss"
