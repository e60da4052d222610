"""The metrics of an evaluation as text: rows of tables, with intervals and chance."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from everest.annotations.bout import BACKGROUND
from everest.config.best import MEASURED_BY, OVER_BACKGROUND
from everest.metrics.names import METRICS, Metric
from everest.system.text import counted

ALL_HEADS = "action_top1"  # the one metric of several heads together


class MetricValue(NamedTuple):
    """A metric of a head, with its 95 % interval and the value of a model that has learned nothing."""

    head: str  # empty: the only head, or all heads together
    metric: str
    value: float
    interval: tuple[float | None, float | None] | None
    chance: float | None

    @property
    def title(self) -> str:
        title = METRICS[self.metric].title
        return f"{self.head} {title}" if self.head else title

    def texts(self) -> tuple[str, str, str]:
        """The value, the interval and chance, as cells of a table."""
        metric = METRICS[self.metric]
        shown = "" if self.interval is None else _range(metric, *self.interval)
        return as_text(metric, self.value), shown, as_text(metric, self.chance)


def metric_values(
    result: dict[str, Any], head: str = "", *, names: Container[str] = METRICS
) -> Iterator[MetricValue]:
    """Yield the metrics in the document of `everest eval --json`, head by head.

    Args:
        names: of the metrics. The mean class accuracy is first if a class is `background`. A metric that
            every model reaches, such as top-5 of five classes, is left out.
    """
    for name, of_head in result.get("heads", {}).items():
        yield from metric_values(of_head, name, names=names)
    has_background = any(row["name"] == BACKGROUND for row in result.get("per_class", ()))
    ordered = sorted(METRICS, key=lambda name: has_background and name != OVER_BACKGROUND)
    for name in ordered:
        metric = METRICS[name]
        if name in names and result.get(name) is not None:
            chance = None if metric.chance is None else result.get(metric.chance)
            if metric.percent and chance == 100:  # any model reaches it: top-5 of five classes
                continue
            yield MetricValue(head, name, result[name], result.get("intervals", {}).get(name), chance)


def metric_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the title, value, 95 % interval and chance of each metric of `everest eval --json`."""
    return ((found.title, *found.texts()) for found in metric_values(result))


def as_text(metric: Metric, value: float | None) -> str:
    """A value of a metric; empty if there is none."""
    if value is None:
        return ""
    return percent(value) if metric.percent else f"{value:.4g}"


def _range(metric: Metric, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{_digits(low)} to {percent(high)}" if metric.percent else f"{low:.4g} to {high:.4g}"


def views_text(result: dict[str, Any]) -> str:
    """The views of a video that the metrics in the document of `everest eval --json` are from."""
    views = result["views"]
    return f"views of a video: {counted(views['clips'], 'clip')} x {counted(views['crops'], 'crop')}"


def fact_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how the metrics in the document of `everest eval --json` were measured."""
    groups = f", from {counted(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    yield "videos", f"{result['videos']}{groups}"
    yield "skipped (unreadable)", str(result["skipped"])
    tokens = counted(result["tokens"], "token")
    yield "a view", f"keep ratio {result['keep']:g}, {tokens}, {result['gmacs']} GMACs"
    yield "time", f"{result['seconds']} s"
    yield from ((name, str(result[name])) for name in ("checkpoint", "recipe", "report") if name in result)


def nearest_texts(by_head: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what the nearest videos have in common, of `everest probe` and `eval`; "": the only head."""
    for head, result in by_head.items():
        start, found = f"{head}: " if head else "", result.get("retrieval")
        if found is None:
            continue
        shares = {"encoder": found["precision@10"], **found["baselines"]}
        known = [
            f"{name.replace('_', ' ')} {share:.1f} %" for name, share in shares.items() if share is not None
        ]
        found_class = ", ".join(known) or "no video has one of its class in another group"
        yield f"{start}same class among the 10 nearest videos of other groups: {found_class}"
        of_class, of_group = found["by_class"], found["by_group"]
        if of_class is None or of_group is None:
            continue
        same = f"the same class in {of_class:.1f} %, of another class the same group in {of_group:.1f} %"
        yield f"{start}the nearest video of another group has {same}"


def useless_texts(by_head: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each baseline that is as good or better by all probes; "": the only head."""
    for head, result in by_head.items():
        start, of_encoder = f"{head}: " if head else "", result["probes"]
        name = next(name for name in METRICS if name in next(iter(of_encoder.values())))
        sign = 1 if METRICS[name].higher else -1
        for baseline, probes in result["baselines"].items():
            pairs = [(of_encoder[probe][name], row[name]) for probe, row in probes.items()]
            known = [(own, other) for own, other in pairs if own is not None and other is not None]
            if known and all(sign * own <= sign * other for own, other in known):
                found = f"no probe is better on the encoder than on the {baseline.replace('_', ' ')}"
                yield f"{start}{found}: without fine-tuning, its features are of no use for these labels"


def percent(value: float) -> str:
    return f"{_digits(value)}\N{NO-BREAK SPACE}%"


def _digits(value: float) -> str:
    """Return a percentage with one decimal; with two near 0 and 100, so that 99.98 is not read as 100."""
    return f"{value:.2f}" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f}"


def sweep_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of `sweep` in the document of `everest eval --json`.

    There is a row for each metric and keep ratio, the ratios of a metric next to each other, which fits a
    terminal of 80 columns. Of several heads it has only the metric that a head is measured by.
    """
    several = "heads" in rows[0]
    names = {*MEASURED_BY.values(), ALL_HEADS} if several else METRICS.keys() - {"clip_top1", "majority_top1"}
    metrics: dict[str, list[list[str]]] = {}
    for row in rows:
        cost = [f"{row['keep']:g}", str(row["tokens"]), str(row["gmacs"])]
        for found in metric_values(row, names=names):
            metrics.setdefault(found.title, []).append([*cost, *found.texts()[:2]])
    texts = [
        ["" if number else title, *cells]
        for title, of_metric in metrics.items()
        for number, cells in enumerate(of_metric)
    ]
    return ["metric", "keep", "tokens", "GMACs", "value", "95 % interval"], texts
