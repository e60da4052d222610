"""The report of a sweep: the document of `everest sweep report --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everest.config.metrics import METRICS
from everest.errors import RecipeError, shown, unknown_name
from everest.sweep.metric_names import metric_of, title_of
from everest.sweep.statistics import DRAWS, LEVEL, paired, spread

Row = dict[str, Any]


def make_report(results: Mapping[str, Any], *, metric: str | None = None, against: str | None = None) -> Row:
    """Compare the arms of a sweep by one metric.

    Args:
        results: the document of `results.json`.
        metric: a name in its metrics; None: the metric of the task.
        against: the arm that the others are compared with; None: that of the sweep.
    Raises:
        RecipeError: an unknown metric or arm, or no finished job that has the metric.
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
        "title": title_of(name),
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
        "mean": None if found is None else found.mean,
        "std": None if found is None else found.std,
        "interval": None if found is None or found.interval is None else list(found.interval),
        "chance": level(None if kind is None else kind.chance),
        "majority": level("majority_top1" if kind is METRICS["top1"] else None),
        "budgets": arm.get("budgets", {}),  # results of older versions have none
        "difference": None if reference is None else _difference(values, reference),
        "gmacs": _mean([row["gmacs"] for row in measured]),
        "hours": _mean([row["hours"] for row in measured]),
    }


def _difference(values: dict[int, float], reference: dict[int, float]) -> Row | None:
    """The arm minus the one it is compared with, at the seeds that both have."""
    found = paired(values, reference)
    if found is None:
        return None
    interval, bootstrap = found.spread.interval, found.bootstrap
    return {
        "seeds": found.seeds,
        "values": found.differences,
        "mean": found.spread.mean,
        "std": found.spread.std,
        "interval": None if interval is None else list(interval),
        "bootstrap": None if bootstrap is None else list(bootstrap),
        "p": found.p,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
