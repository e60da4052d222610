"""The report of a sweep: the document of `everest sweep report --json`, its table, and notes on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from everest.errors import RecipeError, unknown_name
from everest.metrics.names import METRICS, metric_of, value_text
from everest.sweep.results import metric_title
from everest.sweep.statistics import Spread, paired, spread

LEVELS: Final = {"chance": "chance", "majority": "always the most frequent class"}  # keys of an arm, words
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
    known = {key for arm in results["arms"] for row in arm["seeds"] for key in row["metrics"]}
    if not known:
        jobs = f"{results['jobs']['finished']} of {results['jobs']['all']} jobs have finished"
        raise RecipeError(f"no job has measured anything ({jobs}); repeat the command, or add the stage eval")
    name = metric or results["metric"] or min(known)
    values = {arm: _values(rows["seeds"], name) for arm, rows in arms.items()}
    if not any(values.values()):
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
    mean = spread(list(values.values()))._asdict() if values else dict.fromkeys(Spread._fields)
    difference = None if reference is None else paired(values, reference)
    kind = metric_of(metric)
    known = next((key for key in METRICS if METRICS[key] is kind), "")

    def level(name: str | None) -> float | None:
        """The value that needs no learning, measured next to the metric: HEAD.top1, HEAD.majority_top1."""
        place = f"{metric.removesuffix(known)}{name}"
        return _mean([value for row in measured if (value := row["metrics"].get(place)) is not None])

    return {
        "arm": arm["arm"],
        "overrides": arm["overrides"],
        "seeds": list(values),
        "values": list(values.values()),
        **mean,
        "chance": level(None if kind is None else kind.chance),
        "majority": level("majority_top1" if kind is METRICS["top1"] else None),
        "difference": None if difference is None else difference._asdict(),
        "gmacs": _mean([row["gmacs"] for row in measured]),
        "hours": _mean([row["hours"] for row in measured]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table_columns(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The titles of the columns."""
    means = ("arm", "seeds", f"{document['title']}, mean", "95 % interval")
    return (*means, f"minus {document['against']}", "its 95 % interval", "p", "GMACs of training", "hours")


def table_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The row of each arm."""
    digits = ".1f" if document["percent"] else ".4g"
    for arm in document["arms"]:
        difference = arm["difference"] or dict.fromkeys(("mean", "interval", "p"))
        yield (
            arm["arm"],
            str(len(arm["seeds"])),
            value_text(document["metric"], arm["mean"]) if arm["seeds"] else "",
            _numbers(arm["interval"], digits),
            _numbers([difference["mean"]], f"+{digits}"),
            _numbers(difference["interval"], f"+{digits}"),
            _numbers([difference["p"]], ".2g"),
            _numbers([arm["gmacs"]], ".4g"),
            _numbers([arm["hours"]], ".3g"),
        )


def _numbers(values: Sequence[float | None] | None, form: str) -> str:
    """A value, or the two ends of an interval; differences of percentages are in points."""
    return " to ".join(f"{value:{form}}" for value in values or () if value is not None)


def notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the numbers."""
    jobs, arms = document["jobs"], document["arms"]
    if jobs["finished"] < jobs["all"]:
        yield f"{jobs['finished']} of {jobs['all']} jobs have finished"
    if len({tuple(arm["seeds"]) for arm in arms if arm["seeds"]}) > 1:
        yield "a difference uses the seeds that both arms have; their means are over all of their seeds"
    if any(len(arm["seeds"]) == 1 for arm in arms):
        yield "one seed: no interval, and a difference may be the difference between any two runs"
    for key, words in LEVELS.items():
        levels = sorted({round(arm[key], 6) for arm in arms if arm[key] is not None})
        if levels:
            yield f"{words}: {' or '.join(value_text(document['metric'], level) for level in levels)}"
    if not document["higher_is_better"]:
        yield f"{document['title']}: less is better"
