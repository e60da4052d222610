"""The report of a sweep: the document of `everest sweep report --json`, its table, its notes and its figure.

Means over seeds have Student's t intervals, and the differences of arms are paired by seed. An interval of
the mean covers the differences between training runs (weights, order, masks), not which videos are in the
test list; the intervals of `everest eval` cover these.

N seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from everest.errors import RecipeError, unknown_name
from everest.figures.style import COLORS, escape_dollars, saved_figure, shorten
from everest.metrics.intervals import limit_interval
from everest.metrics.names import METRICS, value_text
from everest.system.text import time_text
from everest_workflows.sweep.request import FROM_SCRATCH
from everest_workflows.sweep.results import make_metric_title, split_metric
from everest_workflows.sweep.sweep_plan import SEED_PLACE

CONFIDENCE: Final = 0.95
RELATIVE_ROUNDING: Final = 1e-9  # of the values; those that vary by less are equal
# Values that need no learning, by their keys in an arm: how notes name them, and their line in the figure.
BASELINES: Final = {"chance": ("chance", ":"), "majority": ("always the most frequent class", "--")}
PREDICTION_KEYS: Final = ("pretrain.selection", "pretrain.target", "pretrain.objective")
Json = dict[str, Any]  # of a sweep, or a part of it


class Spread(NamedTuple):
    """A mean over seeds; with a single seed it is the only number. Equal values have no interval."""

    mean: float
    std: float | None
    interval: tuple[float, float] | None  # 95 %, of Student's t


def find_spread(
    values: Sequence[float],
    *,
    scale: float | None = None,
    metric: str = "",
    is_difference: bool = False,
) -> Spread:
    """The mean of one or more values, with the 95 % interval of the mean of a normal distribution.

    `scale` is the size of the numbers that the values were computed from; None: that of the values. The
    interval has only values that the metric, or the difference of two, can have.
    """
    array = np.asarray(values, dtype=np.float64)  # (N,)
    mean = float(array.mean())
    if len(array) < 2:
        return Spread(mean, None, None)
    std = float(array.std(ddof=1))
    if std <= RELATIVE_ROUNDING * (float(np.abs(array).max()) if scale is None else scale):
        return Spread(mean, std, None)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1)) * std / len(array) ** 0.5
    ends = limit_interval(metric, (mean - reach, mean + reach), is_difference=is_difference)
    return Spread(mean, std, ends)


class PairedDifference(NamedTuple):
    """The differences of two arms on the same seeds; see `Spread`. The names are those of --json."""

    seeds: list[int]
    values: list[float]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    p: float | None  # of the paired t-test; None without an interval


def compare_pairs(
    values: dict[int, float], reference: dict[int, float], *, metric: str = ""
) -> PairedDifference | None:
    """Compare two arms by their values at the seeds that both have; None if there is no such seed."""
    seeds = [seed for seed in values if seed in reference]
    if not seeds:
        return None
    differences = [values[seed] - reference[seed] for seed in seeds]
    largest = max(abs(value) for arm in (values, reference) for value in arm.values())
    mean, std, interval = find_spread(differences, scale=largest, metric=metric, is_difference=True)
    p = None
    if std is not None and interval is not None:
        p = 2 * float(stats.t.sf(abs(mean) / (std / len(seeds) ** 0.5), len(seeds) - 1))
    return PairedDifference(seeds, differences, mean, std, interval, p)


def make_report(results: Mapping[str, Any], *, metric: str | None = None, against: str | None = None) -> Json:
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
    name, values = _select_values(results, metric)
    place, kind = split_metric(name)
    changed = (key for arm in results["arms"] for key in arm["overrides"])
    comparable = name != "pretrain_loss" or not any(key.startswith(PREDICTION_KEYS) for key in changed)
    is_percent = kind is not None and kind.is_percent
    no_spread = dict.fromkeys(Spread._fields)
    rows = []
    for arm in results["arms"]:
        of_arm = values[arm["arm"]]
        measured = [row for row in arm["seeds"] if row["seed"] in of_arm]
        is_compared = arm["arm"] != reference and comparable
        difference = compare_pairs(of_arm, values[reference], metric=name) if is_compared else None
        spread = find_spread(list(of_arm.values()), metric=name)._asdict() if of_arm else no_spread

        # The values that need no learning are measured next to the metric: HEAD.top1, HEAD.majority_top1.
        chance = None if kind is None or kind.chance is None else f"{place}{kind.chance}"
        majority = f"{place}majority_top1" if kind is METRICS["top1"] else None
        rows.append(
            {
                "arm": arm["arm"],
                "overrides": arm["overrides"],
                "init": arm.get("init", FROM_SCRATCH),
                "seeds": list(of_arm),
                "values": list(of_arm.values()),
                **spread,
                "chance": _average(row["metrics"].get(chance) for row in measured),
                "majority": _average(row["metrics"].get(majority) for row in measured),
                "difference": None if difference is None else difference._asdict(),
                "gmacs": _average(row["gmacs"] for row in measured),
                "hours": _average(row["hours"] for row in measured),
            }
        )
    return {
        **{key: results[key] for key in ("recipe", "summary", "stages")},
        "metric": name,
        "title": make_metric_title(name),
        "percent": is_percent,
        "higher_is_better": kind is None or kind.is_higher_better,
        "comparable": comparable,
        "against": reference,
        "jobs": results["jobs"],
        "arms": rows,
        "failures": results["failures"],
    }


def _select_values(results: Mapping[str, Any], metric: str | None) -> tuple[str, dict[str, dict[int, float]]]:
    """The name of a metric, by default that of the task, and its values by arm and seed."""
    metrics = (row["metrics"] for arm in results["arms"] for row in arm["seeds"])
    known = list(dict.fromkeys(key for row in metrics for key, value in row.items() if value is not None))
    if not known:
        jobs = f"{results['jobs']['finished']} of {results['jobs']['all']} jobs have finished"
        raise RecipeError(f"no job has measured anything ({jobs}); repeat the command, or add the stage eval")
    name = metric or results["metric"] or known[0]
    values: dict[str, dict[int, float]] = {}
    for arm in results["arms"]:
        measured = {row["seed"]: row["metrics"].get(name) for row in arm["seeds"]}
        values[arm["arm"]] = {seed: value for seed, value in measured.items() if value is not None}
    if not any(values.values()):
        raise unknown_name("--metric", name, known)
    return name, values


def _average(numbers: Iterable[float | None]) -> float | None:
    """The mean of the known numbers; None if there are none."""
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def make_report_table(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the titles of the columns, then the row of each arm."""
    means = ("arm", "seeds", f"{document['title']}, mean", "95 % interval")
    differences = (f"minus {document['against']}", "its 95 % interval", "p")
    yield (*means, *differences, "forward GMACs of training", "time")
    digits = ".1f" if document["percent"] else ".4g"
    for arm in document["arms"]:
        difference = arm["difference"] or dict.fromkeys(("mean", "interval", "p"))
        yield (
            arm["arm"],
            str(len(arm["seeds"])),
            value_text(document["metric"], arm["mean"]) if arm["seeds"] else "",
            _format_cell(arm["interval"], digits),
            _format_cell([difference["mean"]], f"+{digits}"),
            _format_cell(difference["interval"], f"+{digits}"),
            _format_cell([difference["p"]], ".2g"),
            _format_cell([arm["gmacs"]], ".4g"),
            "" if arm["hours"] is None else time_text(3600 * arm["hours"]),
        )


def _format_cell(values: Sequence[float | None] | None, form: str) -> str:
    """A value, or the two ends of an interval; differences of percentages are in points."""
    return " to ".join(f"{value:{form}}" for value in values or () if value is not None)


def list_report_notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the numbers."""
    jobs, arms = document["jobs"], document["arms"]
    if jobs["finished"] < jobs["all"]:
        yield f"{jobs['finished']} of {jobs['all']} jobs have finished"
    if len({tuple(arm["seeds"]) for arm in arms if arm["seeds"]}) > 1:
        yield "a difference uses the seeds that both arms have; their means are over all of their seeds"
    if any(len(arm["seeds"]) == 1 for arm in arms):
        yield "one seed: no interval, and a difference may be the difference between any two runs"
    spreads = [spread for arm in arms for spread in (arm, arm["difference"]) if spread]
    if any(len(spread["values"]) > 1 and spread["interval"] is None for spread in spreads):
        yield "no interval and no p where all seeds have equal values"
    for key, (words, _) in BASELINES.items():
        levels = sorted({round(arm[key], 6) for arm in arms if arm[key] is not None})
        if levels:
            yield f"{words}: {' or '.join(value_text(document['metric'], level) for level in levels)}"
    if not document["comparable"]:
        yield "arms that predict different tokens have losses that cannot be compared; use another --metric"
    elif not document["higher_is_better"]:
        yield f"{document['title']}: less is better"
    started = {arm["init"] for arm in arms} - {FROM_SCRATCH}
    if started:
        yield "GMACs and time leave out the training of the weights that arms start from (init)"
    if any(SEED_PLACE not in init for init in started):
        yield "all seeds of an arm start from the same weights: the intervals do not cover their training"


def draw_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a PNG of the document of `everest sweep report --json`.

    A point is the mean of an arm, a bar its 95 % interval, a small dot a seed; GMACs are of its training. A
    second panel has the differences.
    """
    arms = [arm for arm in document["arms"] if arm["values"]]
    with saved_figure(path, (12, 1.5 + 0.4 * len(arms))) as figure:
        compared = [(row, arm["difference"]) for row, arm in enumerate(arms) if arm["difference"]]
        panel, *others = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
        for row, arm in enumerate(arms):
            _draw_mean(panel, row, arm)
        for differences in others:
            for row, difference in compared:
                _draw_mean(differences, row, difference)
            differences.axvline(0, color="black", linewidth=1)
            differences.set_xlabel(f"minus {escape_dollars(shorten(document['against']))}, at equal seeds")
            differences.grid(alpha=0.3, axis="x")
        for key, (_, style) in BASELINES.items():
            for level in {arm[key] for arm in arms if arm[key] is not None}:
                panel.axvline(level, linestyle=style, color="black", linewidth=1, zorder=0)
        names = [f"{escape_dollars(shorten(arm['arm']))}\n{arm['gmacs']:.4g} GMACs" for arm in arms]
        panel.set_yticks(range(len(arms)), names, fontsize="small")
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_xlabel(f"{escape_dollars(document['title'])}{' (%)' if document['percent'] else ''}")
        title = "bars: 95 % intervals; small dots: seeds; dotted: chance; dashed: most frequent class"
        panel.set_title(title, fontsize="small", loc="left")
        panel.grid(alpha=0.3, axis="x")


def _draw_mean(panel: Axes, row: int, spread: Json) -> None:
    """Draw a mean with its interval and the values of the seeds."""
    mean, values = spread["mean"], spread["values"]
    low, high = spread["interval"] or (mean, mean)
    panel.plot(values, [row] * len(values), "o", ms=4, mfc="white", color="0.5")
    panel.errorbar([mean], [row], xerr=[[mean - low], [high - mean]], color=COLORS[0], marker="o", capsize=4)
