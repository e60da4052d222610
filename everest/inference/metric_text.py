"""The metrics of an evaluation as text: rows of tables, with intervals and chance."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

from everest.config.metrics import MEASURED_BY, METRICS, Metric


def metric_rows(
    result: dict[str, Any], head: str = "", *, names: Container[str] = METRICS
) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, 95 % interval and chance of the metrics in the document of `everest eval --json`.

    Args:
        head: begins the names.
        names: of the metrics. One that a model cannot miss is left out.
    """
    for name, of_head in result.get("heads", {}).items():
        yield from metric_rows(of_head, f"{name} ", names=names)
    for name, metric in METRICS.items():
        if name in names and result.get(name) is not None:
            interval = result.get("intervals", {}).get(name)
            chance = None if metric.chance is None else result.get(metric.chance)
            if metric.percent and chance == 100:  # any model reaches it: top-5 of five classes
                continue
            shown = "" if interval is None else _range(metric, *interval)
            yield head + metric.title, as_text(metric, result[name]), shown, as_text(metric, chance)


def as_text(metric: Metric, value: float | None) -> str:
    """A value of a metric; empty if there is none."""
    if value is None:
        return ""
    return percent(value) if metric.percent else f"{value:.4g}"


def _range(metric: Metric, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{_digits(low)} to {percent(high)}" if metric.percent else f"{low:.4g} to {high:.4g}"


def fact_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how the metrics in the document of `everest eval --json` were measured."""
    views = result["views"]
    groups = f", from {result['groups']} groups" if result["groups"] < result["videos"] else ""
    yield "videos", f"{result['videos']}{groups}"
    yield "views of a video", f"{views['clips']} clips x {views['crops']} crops"
    yield "skipped (unreadable)", str(result["skipped"])
    yield "time", f"{result['seconds']} s"
    yield from ((name, str(result[name])) for name in ("checkpoint", "recipe", "report") if name in result)


def percent(value: float) -> str:
    return f"{_digits(value)}\N{NO-BREAK SPACE}%"


def _digits(value: float) -> str:
    """Return a percentage with one decimal; with two near 0 and 100, so that 99.98 is not read as 100."""
    return f"{value:.2f}" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f}"


def sweep_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of `sweep` in the document of `everest eval --json`.

    Of several heads only the metric that a head is measured by: a table of all is wider than a terminal.
    """
    several = "heads" in rows[0]
    names = (
        {*MEASURED_BY.values(), "action_top1"} if several else METRICS.keys() - {"clip_top1", "majority_top1"}
    )
    texts = []
    for row in rows:
        cells = {"keep ratio": str(row["keep"]), "tokens": str(row["tokens"]), "GMACs": str(row["gmacs"])}
        for name, value, interval, _ in metric_rows(row, names=names):
            cells[name] = f"{value} ({interval})" if interval else value
        texts.append(cells)
    return list(texts[0]), [list(cells.values()) for cells in texts]
