"""The metrics of an evaluation as text: rows of tables, with intervals and chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from everest.metrics.names import METRICS, value_text
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
        if name == "top5" and chance is not None and chance > 50:  # percent; heuristic
            continue
        low, high = result.get("intervals", {}).get(name) or (None, None)
        interval = ""
        if low is not None and high is not None:
            interval = f"{value_text(name, low).removesuffix(' %')} to {value_text(name, high)}"
        title = f"{head} {metric.title}" if head else metric.title
        chance_text = "" if chance is None else value_text(name, chance)
        yield title, value_text(name, result[name]), interval, chance_text


def views_text(result: dict[str, Any], unit: str = "video") -> str:
    """The views of a video, or another unit, that the metrics of `everest eval --json` are from."""
    views = result["views"]
    return f"views of a {unit}: {counted(views['clips'], 'clip')} x {counted(views['crops'], 'crop')}"


def fact_rows(result: dict[str, Any], unit: str = "video") -> Iterator[tuple[str, str]]:
    """Yield how the metrics in the document of `everest eval --json` were measured."""
    groups = f", from {counted(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    yield f"{unit}s", f"{result['videos']}{groups}"
    yield "skipped (unreadable)", str(result["skipped"])
    kept = result["tokens"] is not None  # a linear model on images has no tokens
    tokens = f"keep ratio {result['keep']:g}, {counted(result['tokens'], 'token')}, " if kept else ""
    yield "a view", f"{tokens}{result['gmacs']} GMACs"
    yield "time", f"{result['seconds']} s"
    yield from ((name, str(result[name])) for name in ("checkpoint", "recipe", "report") if name in result)
