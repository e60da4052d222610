"""The metrics of an evaluation: their titles, and which of them chooses the best weights. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # `everest runs` needs the metrics, and no torch, which takes a second
    from everest.config.heads import Heads


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is shown, and compared."""

    title: str
    chance: str | None = None  # the name of its value for a model that has learned nothing
    percent: bool = True
    higher: bool = True  # whether more is better
    short: str | None = None  # of the title, for a line with many metrics


# By their names in the document of `everest eval --json`.
METRICS: Final[dict[str, Metric]] = {
    "top1": Metric(title="top-1", chance="chance_top1"),
    "majority_top1": Metric(title="always the most frequent class"),
    "top5": Metric(title="top-5", chance="chance_top5"),
    "mean_class_accuracy": Metric(title="mean class accuracy", chance="chance_top1"),
    "map": Metric(title="mean average precision", short="mAP", chance="chance_map"),
    "micro_f1": Metric(title="micro F1"),
    "macro_f1": Metric(title="macro F1"),
    "exact_match": Metric(title="all classes of a video right"),
    "clip_top1": Metric(title="top-1 of single views", chance="chance_top1"),
    "action_top1": Metric(title="top-1, all heads", chance="chance_action_top1"),
    "ece": Metric(title="calibration error", higher=False),
    "ece_calibrated": Metric(title="calibration error with --calibrated", higher=False),
    "mae": Metric(title="mean absolute error", chance="chance_mae", percent=False, higher=False),
    "rmse": Metric(title="root mean square error", percent=False, higher=False),
    "r2": Metric(title="R²", percent=False),
    "spearman": Metric(title="rank correlation (Spearman)", percent=False),
    "loss": Metric(title="loss", percent=False, higher=False),
}
# The names of the values of chance.
CHANCES: Final = tuple(dict.fromkeys(metric.chance for metric in METRICS.values() if metric.chance))
# In metrics.jsonl.
LOGGED: Final = (
    *("top1", "top5", "mean_class_accuracy", "macro_f1", "map", "micro_f1"),
    *("mae", "rmse", "r2", "spearman"),
)
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


def metric_of(name: str) -> Metric | None:
    """The metric of METRICS that a name means; of data.val also `val_HEAD_METRIC`."""
    last = name.rpartition(".")[2]
    known = [metric for metric in METRICS if last == metric or last.endswith(f"_{metric}")]
    return METRICS[max(known, key=len)] if known else None


def value_text(name: str, value: float | None) -> str:
    """A value with its unit."""
    if value is None:
        return "none"
    metric = metric_of(name)
    return f"{value:.1f} %" if metric is not None and metric.percent else f"{value:.4g}"
