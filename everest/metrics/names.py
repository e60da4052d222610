"""The metrics of an evaluation, by name and as text. Does not import torch, which takes a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from everest.system.text import plural


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is shown and compared."""

    title: str
    chance: str | None = None  # name of its chance level
    is_percent: bool = True
    is_higher_better: bool = True  # whether higher values are better
    short: str | None = None  # short title for a line with many metrics


# Metrics by their names in the document of `everest eval --json`.
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
    "mae": Metric(title="mean absolute error", chance="chance_mae", is_percent=False, is_higher_better=False),
    "rmse": Metric(title="root mean square error", is_percent=False, is_higher_better=False),
    "r2": Metric(title="R²", is_percent=False),
    "spearman": Metric(title="rank correlation (Spearman)", is_percent=False),
    "loss": Metric(title="loss", is_percent=False, is_higher_better=False),
}
# The names of the chance levels.
CHANCE_NAMES: Final = tuple(dict.fromkeys(metric.chance for metric in METRICS.values() if metric.chance))
CLASS_MEANS: Final = ("mean_class_accuracy", "macro_f1", "map")  # means over classes
# Metrics that metrics.jsonl may have.
LOGGED_METRICS: Final = (
    *("top1", "top5", "mean_class_accuracy", "macro_f1", "map", "micro_f1"),
    *("mae", "rmse", "r2", "spearman"),
)


def find_metric(name: str) -> Metric | None:
    """Return the metric of METRICS for a name, which may also be `val_HEAD_METRIC`."""
    suffix = name.rpartition(".")[2]
    names = [metric for metric in METRICS if suffix == metric or suffix.endswith(f"_{metric}")]
    return METRICS[max(names, key=len)] if names else None


def name_metric(metric: str) -> str:
    """The title of a metric in a sentence, where top-1 is called accuracy."""
    return "accuracy" if metric == "top1" else METRICS[metric].title


def value_text(name: str, value: float | None) -> str:
    """Format a value with its unit."""
    if value is None:
        return "none"
    metric = find_metric(name)
    return percent_text(value) if metric is not None and metric.is_percent else f"{value:.4g}"


def percent_text(value: float) -> str:
    """Format a percentage with one decimal; near 0 and 100 with two, so that 99.98 is not read as 100."""
    return f"{value:.2f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f} %"


def metric_rows(result: dict[str, Any], head: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield title, value, 95 % interval and chance of the metrics of `everest eval --json`, head by head.

    Uninformative metrics are left out: a metric that every model reaches, and top-5 of up to nine classes.
    """
    for name, head_result in result.get("heads", {}).items():
        yield from metric_rows(head_result, name)
    for name, metric in METRICS.items():
        chance = None if metric.chance is None else result.get(metric.chance)
        if result.get(name) is None or (metric.is_percent and chance == 100):
            continue
        if name == "top5" and chance is not None and chance > 50:  # percent; heuristic
            continue
        low, high = result.get("intervals", {}).get(name) or (None, None)
        interval = ""
        if low is not None and high is not None:
            interval = f"{value_text(name, low).removesuffix(' %')} to {value_text(name, high)}"
        title = f"{head} {metric.title}" if head else metric.title
        chance_text = "" if chance is None else value_text(name, chance)
        yield title, value_text(name, result[name]), interval, chance_text


def views_text(result: Mapping[str, Any], noun: str = "video") -> str:
    """Describe the views per video, or other unit, behind the metrics of `everest eval --json`."""
    views = result["views"]
    return f"views of a {noun}: {plural(views['clips'], 'clip')} x {plural(views['crops'], 'crop')}"


def measurement_rows(result: dict[str, Any], noun: str = "video") -> Iterator[tuple[str, str]]:
    """Yield how the metrics in the document of `everest eval --json` were measured.

    The cost of a view and the time are left out if the document lacks them, as of several models together.
    """
    groups = f", from {plural(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    yield f"{noun}s", f"{result['videos']}{groups}"
    yield "skipped (unreadable)", str(result["skipped"])
    for key, whose in (("alarms", ""), ("alarms_against", " of the other model")):
        if key in result:
            text = (
                "{found} of {faults} faults, {false} of {normal_videos} {normal}, threshold {threshold:.3g}"
            )
            yield f"alarms{whose}", text.format(**result[key])
    if "gmacs" in result:
        has_tokens = result["tokens"] is not None  # a linear model on images has no tokens
        tokens = f"keep ratio {result['keep']:g}, {plural(result['tokens'], 'token')}, " if has_tokens else ""
        yield "a view", f"{tokens}{result['gmacs']} GMACs"
        yield "time", f"{result['seconds']} s"
    yield from ((name, str(result[name])) for name in ("checkpoint", "recipe", "report") if name in result)
