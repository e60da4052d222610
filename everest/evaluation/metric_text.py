"""The metrics of an evaluation as text: rows of tables, with intervals and chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from everest.metrics.names import METRICS, Metric
from everest.system.text import counted


def metric_rows(result: dict[str, Any], head: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield title, value, 95 % interval and chance of the metrics of `everest eval --json`, head by head.

    A metric that says little is left out: one that every model reaches, and top-5 of up to nine classes.
    """
    for name, of_head in result.get("heads", {}).items():
        yield from metric_rows(of_head, name)
    for name, metric in METRICS.items():
        chance = None if metric.chance is None else result.get(metric.chance)
        if result.get(name) is None or (metric.percent and chance == 100):
            continue
        if name == "top5" and chance is not None and chance > 50:  # percent; our choice
            continue
        low, high = result.get("intervals", {}).get(name) or (None, None)
        interval = ""
        if low is not None and high is not None:
            start = _digits(low) if metric.percent else f"{low:.4g}"
            interval = f"{start} to {as_text(metric, high)}"
        title = f"{head} {metric.title}" if head else metric.title
        yield title, as_text(metric, result[name]), interval, as_text(metric, chance)


def as_text(metric: Metric, value: float | None) -> str:
    """A value of a metric; empty if there is none."""
    if value is None:
        return ""
    return percent(value) if metric.percent else f"{value:.4g}"


def views_text(result: dict[str, Any], unit: str = "video") -> str:
    """The views of a video, or another unit, that the metrics of `everest eval --json` are from."""
    views = result["views"]
    return f"views of a {unit}: {counted(views['clips'], 'clip')} x {counted(views['crops'], 'crop')}"


def fact_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how the metrics in the document of `everest eval --json` were measured."""
    groups = f", from {counted(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    yield "videos", f"{result['videos']}{groups}"
    yield "skipped (unreadable)", str(result["skipped"])
    tokens = counted(result["tokens"], "token")
    yield "a view", f"keep ratio {result['keep']:g}, {tokens}, {result['gmacs']} GMACs"
    yield "time", f"{result['seconds']} s"
    yield from ((name, str(result[name])) for name in ("checkpoint", "recipe", "report") if name in result)


def percent(value: float) -> str:
    return f"{_digits(value)}\N{NO-BREAK SPACE}%"


def _digits(value: float) -> str:
    """Return a percentage with one decimal; with two near 0 and 100, so that 99.98 is not read as 100."""
    return f"{value:.2f}" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f}"
