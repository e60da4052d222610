"""The report of a sweep: the document of `everest sweep report --json`, its table, and notes on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from everest.errors import RecipeError, shown, unknown_name
from everest.metrics.names import METRICS, metric_of, value_text
from everest.sweep.budgets import Budget
from everest.sweep.metric_names import metric_title
from everest.sweep.statistics import DRAWS, LEVEL, Spread, paired, spread

LEVELS: Final = {"chance": "chance", "majority": "always the most frequent class"}  # keys of an arm, words
FEW_SEEDS: Final = 5  # our choice: with fewer, the t quantile is above 3
Row = dict[str, Any]


def make_report(results: Mapping[str, Any], *, metric: str | None = None, against: str | None = None) -> Row:
    """Compare the arms of a sweep by one metric.

    Args:
        results: the document of `results.json`.
        metric: a name in its metrics; None: the metric of the task.
        against: the arm that the others are compared with; None: that of the sweep.
    """
    arms = {arm["arm"]: arm for arm in results["arms"]}
    reference = results["against"] if against is None else against
    if reference not in arms:
        raise unknown_name("--against", reference, arms)
    name = results["metric"] if metric is None else metric
    values = {arm: _values(rows["seeds"], name) for arm, rows in arms.items()}
    if not any(values.values()):
        known = {key for arm in results["arms"] for row in arm["seeds"] for key in row["metrics"]}
        done, every = results["jobs"]["finished"], results["jobs"]["all"]
        if done < every and (metric is None or name in known or metric_of(name) is not None):
            raise RecipeError(
                f"no seed of any arm has {shown(name)} yet ({done} of {every} jobs have finished); repeat "
                "the command of the sweep"
            )
        if not known:
            raise RecipeError("no job has measured anything; add the stage eval or probe, or set data.val")
        raise unknown_name("--metric", name, known)
    kind = metric_of(name)
    return {
        "recipe": results["recipe"],
        "summary": results["summary"],
        "stages": results["stages"],
        "metric": name,
        "title": metric_title(name),
        "percent": kind is not None and kind.percent,
        "higher_is_better": kind is None or kind.higher,
        "against": reference,
        "equal": results["equal"],
        "level": LEVEL,
        "bootstrap_draws": DRAWS,
        "jobs": results["jobs"],
        "arms": [
            _arm(arms[arm], name, values[arm], None if arm == reference else values[reference])
            for arm in arms
        ],
        "failures": results["failures"],
    }


def _values(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """The values of a metric by seed."""
    return {row["seed"]: row["metrics"][metric] for row in rows if row["metrics"].get(metric) is not None}


def _arm(arm: Row, metric: str, values: dict[int, float], reference: dict[int, float] | None) -> Row:
    measured = [row for row in arm["seeds"] if row["seed"] in values]
    found = spread(list(values.values())) if values else None
    difference = None if reference is None else paired(values, reference)
    kind = metric_of(metric)

    def level(name: str | None) -> float | None:
        """The value that needs no learning, measured next to the metric: HEAD.top1, HEAD.majority_top1."""
        known = next(key for key, each in METRICS.items() if each is kind) if name else ""
        place = f"{metric.removesuffix(known)}{name}"
        return _mean([value for row in measured if (value := row["metrics"].get(place)) is not None])

    return {
        "arm": arm["arm"],
        "overrides": arm["overrides"],
        "seeds": list(values),
        "values": list(values.values()),
        **(dict.fromkeys(Spread._fields) if found is None else found._asdict()),
        "chance": level(None if kind is None else kind.chance),
        "majority": level("majority_top1" if kind is METRICS["top1"] else None),
        "budgets": arm.get("budgets", {}),  # of arms with equal GMACs
        "difference": None if difference is None else difference._asdict(),
        "gmacs": _mean([row["gmacs"] for row in measured]),
        "hours": _mean([row["hours"] for row in measured]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table_columns(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The titles of the columns."""
    minus = f"minus {document['against']}"
    return (
        *("arm", "seeds", f"{document['title']}, mean", "95 % interval"),
        *(minus, "95 % interval (t)", "95 % interval (bootstrap)", "p", "GMACs of training", "hours"),
    )


def table_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The row of each arm."""
    metric = document["metric"]
    for arm in document["arms"]:
        difference = arm["difference"] or {}
        drawn = difference.get("bootstrap")
        if len(difference.get("seeds", ())) < FEW_SEEDS:
            drawn = None  # too narrow
        yield (
            arm["arm"],
            str(len(arm["seeds"])),
            value_text(metric, arm["mean"]) if arm["seeds"] else "",
            _interval(document, arm["interval"]),
            _number(document, difference.get("mean"), signed=True),
            _interval(document, difference.get("interval"), signed=True),
            _interval(document, drawn, signed=True),
            "" if difference.get("p") is None else f"{difference['p']:.2g}",
            "" if arm["gmacs"] is None else f"{arm['gmacs']:.4g}",
            "" if arm["hours"] is None else f"{arm['hours']:.3g}",
        )


def notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the numbers."""
    jobs, arms = document["jobs"], document["arms"]
    if jobs["finished"] < jobs["all"]:
        yield f"{jobs['finished']} of {jobs['all']} jobs have finished"
    pairs = [arm["difference"]["seeds"] for arm in arms if arm["difference"] is not None]
    fewest = min([len(seeds) for seeds in pairs] or [len(arm["seeds"]) for arm in arms if arm["seeds"]])
    if len({tuple(arm["seeds"]) for arm in arms if arm["seeds"]}) > 1:
        yield "a difference uses the seeds that both arms have; their means are over all of their seeds"
    if fewest == 1:
        yield "one seed: no interval, and a difference may be the difference between any two runs"
    elif fewest < FEW_SEEDS:
        yield (
            f"{fewest} seeds: with fewer than {FEW_SEEDS}, t intervals are wide, and bootstrap intervals are "
            "too narrow, so they are in --json only"
        )
    for arm in arms:
        if len(arm["values"]) > 1 and arm["interval"] is None:
            yield f"{arm['arm']}: all seeds have the same value, which gives no interval"
        difference = arm["difference"] or {"values": [], "interval": None}
        if len(difference["values"]) > 1 and difference["interval"] is None:
            yield f"{arm['arm']}: all differences are equal, which gives no interval"
    for key, words in LEVELS.items():
        levels = {arm["arm"]: round(arm[key], 6) for arm in arms if arm[key] is not None}
        for level in sorted(set(levels.values())):
            names = ", ".join(name for name, each in levels.items() if each == level)
            of_arms = "" if len(set(levels.values())) == 1 else f"{names}: "
            yield f"{of_arms}{words}: {value_text(document['metric'], level)}"
    for arm in arms:
        for stage, budget in arm["budgets"].items():
            yield f"{arm['arm']}: {stage} {Budget(**budget).text()}"
    if not document["higher_is_better"]:
        yield f"{document['title']}: less is better"


def _interval(document: Mapping[str, Any], ends: Sequence[float] | None, *, signed: bool = False) -> str:
    if ends is None:
        return ""
    return " to ".join(_number(document, end, signed=signed) for end in ends)


def _number(document: Mapping[str, Any], value: float | None, *, signed: bool = False) -> str:
    """A value without its unit; differences of percentages are in points."""
    if value is None:
        return ""
    sign = "+" if signed else ""
    return f"{value:{sign}.1f}" if document["percent"] else f"{value:{sign}.4g}"
