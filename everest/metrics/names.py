"""The metrics of an evaluation, by name. Needs no torch, which takes a second to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


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
    "exact_match": Metric(title="all classes right"),
    "clip_top1": Metric(title="top-1 of single views", chance="chance_top1"),
    "action_top1": Metric(title="top-1, all heads", chance="chance_action_top1"),
    "mae": Metric(title="mean absolute error", chance="chance_mae", percent=False, higher=False),
    "rmse": Metric(title="root mean square error", percent=False, higher=False),
    "r2": Metric(title="R²", percent=False),
    "spearman": Metric(title="rank correlation (Spearman)", percent=False),
    "loss": Metric(title="loss", percent=False, higher=False),
}
# The names of the values of chance.
CHANCES: Final = tuple(dict.fromkeys(metric.chance for metric in METRICS.values() if metric.chance))
OVER_CLASSES: Final = ("mean_class_accuracy", "macro_f1", "map")  # means over classes
# In metrics.jsonl.
LOGGED: Final = (
    *("top1", "top5", "mean_class_accuracy", "macro_f1", "map", "micro_f1"),
    *("mae", "rmse", "r2", "spearman"),
)


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
    return percent_text(value) if metric is not None and metric.percent else f"{value:.4g}"


def percent_text(value: float) -> str:
    """A percentage with one decimal; with two near 0 and 100, so that 99.98 is not read as 100."""
    return f"{value:.2f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f} %"
