"""The report of a sweep as text: the rows of its table, and notes on how to read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from everest.sweep.budgets import Budget
from everest.sweep.metric_names import value_text

LEVELS: Final = {"chance": "chance", "majority": "always the most frequent class"}  # keys of an arm, words
FEW_SEEDS: Final = 5  # our choice: with fewer, the t quantile is above 3


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
            of_arms = "" if len(set(levels.values())) == 1 else _listed(levels, level)
            yield f"{of_arms}{words}: {value_text(document['metric'], level)}"
    for arm in arms:
        for stage, budget in arm["budgets"].items():
            yield f"{arm['arm']}: {stage} {Budget(**budget).text()}"
    if not document["higher_is_better"]:
        yield f"{document['title']}: less is better"


def _listed(levels: Mapping[str, float], level: float) -> str:
    return f"{', '.join(name for name, each in levels.items() if each == level)}: "


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
