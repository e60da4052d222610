"""The report of a sweep: the document of `everest sweep report --json`, its notes and its figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from matplotlib.axes import Axes

from everest.errors import RecipeError, unknown_name
from everest.figures.style import COLORS, escape_dollars, saved_figure, shorten
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import METRICS, find_metric, value_text
from everest.system.text import plural
from everest_workflows.sweep.request import FROM_SCRATCH, SEED_FIELD
from everest_workflows.sweep.results import VALIDATION_PREFIX, make_metric_title, split_metric
from everest_workflows.sweep.statistics import (
    SampledDifference,
    Spread,
    bootstrap_difference,
    compare_pairs,
    find_spread,
    read_outcomes,
)

# Values that need no learning, by their keys in a variant: how notes name them, and their line in the figure.
BASELINES: Final = {"chance": ("chance", ":"), "majority": ("always the most frequent class", "--")}
PREDICTION_KEYS: Final = ("pretrain.selection", "pretrain.target", "pretrain.objective")
Json = dict[str, Any]  # of a sweep, or a part of it


def make_report(
    results: Mapping[str, Any],
    *,
    metric: str | None = None,
    against: str | None = None,
    tuned: str | None = None,
    folder: Path | None = None,
) -> Json:
    """Compare the variants of a sweep by one metric.

    Args:
        results: the document of `results.json`.
        metric: a name in its metrics; None: the metric of the task.
        against: the variant that the others are compared with; None: that of the sweep.
        tuned: the key of a setting; of the variants that differ only in it, the best on data.val is reported.
        folder: of the sweep, which has the outcomes of each video; None: no intervals over videos.
    """
    variants = {variant["variant"]: variant for variant in results["variants"]}
    reference = results["against"] if against is None else against
    if tuned is not None:
        variants, names = choose_tuned(results["variants"], tuned)
        reference = names.get(reference, reference)
    if reference not in variants:
        raise unknown_name("--against", reference, variants)
    name, values = _select_values(results, variants, metric)
    _, kind = split_metric(name)
    changed = (key for variant in results["variants"] for key in variant["overrides"])
    comparable = name != "pretrain_loss" or not any(key.startswith(PREDICTION_KEYS) for key in changed)
    rows = []
    for title, variant in variants.items():
        difference = None
        if title != reference and comparable:
            difference = compare_pairs(values[title], values[reference], metric=name)
        if difference is not None:
            sampled = _compare_videos(folder, variant, variants[reference], difference.seeds, name)
            difference = difference._asdict() | sampled._asdict()
        rows.append(
            {"variant": title, **_measure_variant(variant, values[title], name), "difference": difference}
        )
    return {
        **{key: results[key] for key in ("recipe", "summary", "stages")},
        "metric": name,
        "title": make_metric_title(name),
        "percent": kind is not None and kind.is_percent,
        "higher_is_better": kind is None or kind.is_higher_better,
        "comparable": comparable,
        "against": reference,
        "tuned": tuned,
        "jobs": results["jobs"],
        "variants": rows,
        "failures": results["failures"],
    }


def _measure_variant(variant: Json, values: Mapping[int, float], metric: str) -> Json:
    """The values of a variant by its seeds, their spread, the baselines and the cost."""
    measured = [row for row in variant["seeds"] if row["seed"] in values]
    # The values that need no learning are measured next to the metric: HEAD.top1, HEAD.majority_top1.
    prefix, kind = split_metric(metric)
    chance = None if kind is None or kind.chance is None else f"{prefix}{kind.chance}"
    majority = f"{prefix}majority_top1" if kind is METRICS["top1"] else None
    spread = find_spread(list(values.values()), metric=metric)._asdict() if values else None
    return {
        "overrides": variant["overrides"],
        "init": variant.get("init", FROM_SCRATCH),
        "tuned": variant.get("tuned"),
        "seeds": list(values),
        "values": list(values.values()),
        **(spread or dict.fromkeys(Spread._fields)),
        "chance": _average(row["metrics"].get(chance) for row in measured),
        "majority": _average(row["metrics"].get(majority) for row in measured),
        **{key: _average(row.get(key) for row in measured) for key in ("gmacs", "view_gmacs", "hours")},
        "memory_bytes": max((row.get("memory_bytes") or 0 for row in measured), default=0) or None,
    }


def choose_tuned(variants: Sequence[Json], key: str) -> tuple[dict[str, Json], dict[str, str]]:
    """Of the variants that differ only in a setting, the one with the best mean validation.

    Returns:
        The chosen variants by their name without the setting, and this name by the name of each variant.
    """
    names: dict[str, str] = {}
    groups: dict[str, list[Json]] = defaultdict(list)
    prefixes = f"{key}=", f"{key.rpartition('.')[2]}="
    for variant in variants:
        parts = [part for part in variant["variant"].split(", ") if not part.startswith(prefixes)]
        names[variant["variant"]] = name = ", ".join(parts) or "all variants"
        groups[name].append(variant)
    values = [[variant["overrides"].get(key) for variant in group] for group in groups.values()]
    if len(values[0]) < 2 or any(of_group != values[0] for of_group in values):
        raise RecipeError(f"--tuned {key}: give each variant the same values by --over {key}=A,B")
    chosen = {}
    for name, group in groups.items():
        by_validation: dict[float, Json] = {}
        for variant in group:
            if (validation := _mean_validation(variant)) is None:
                raise RecipeError(
                    f"--tuned {key}: needs the validation of all jobs; set data.val, and repeat"
                )
            by_validation.setdefault(validation, variant)
        best = by_validation[max(by_validation)]
        chosen[name] = best | {"tuned": best["overrides"][key]}
    return chosen, names


def _mean_validation(variant: Json) -> float | None:
    """The mean of the validation over all seeds, higher for better; None if a job has none."""
    metrics = [row["metrics"] for row in variant["seeds"]]
    name = next((name for name in metrics[0] if name.startswith(VALIDATION_PREFIX)), None)
    if name is None or any(row.get(name) is None for row in metrics):
        return None
    kind = find_metric(name)
    sign = 1 if kind is None or kind.is_higher_better else -1
    return sign * fmean(row[name] for row in metrics)


def _select_values(
    results: Mapping[str, Any], variants: Mapping[str, Json], metric: str | None
) -> tuple[str, dict[str, dict[int, float]]]:
    """The name of a metric, by default that of the task, and its values by variant and seed."""
    metrics = (row["metrics"] for variant in variants.values() for row in variant["seeds"])
    known = list(dict.fromkeys(key for row in metrics for key, value in row.items() if value is not None))
    if not known:
        jobs = f"{results['jobs']['finished']} of {results['jobs']['all']} jobs have finished"
        raise RecipeError(f"no job has measured anything ({jobs}); repeat the command, or add the stage eval")
    name = metric or results["metric"] or known[0]
    if name not in known and metric is None:
        raise ValueError(f"metric: {name!r}")
    if name not in known:
        raise unknown_name("--metric", name, known)
    return name, {
        title: {
            row["seed"]: row["metrics"][name]
            for row in variant["seeds"]
            if row["metrics"].get(name) is not None
        }
        for title, variant in variants.items()
    }


def _compare_videos(
    folder: Path | None, variant: Json, reference: Json, seeds: Sequence[int], metric: str
) -> SampledDifference:
    """A difference over groups and seeds, from the outcomes of each video."""
    if folder is None:
        return SampledDifference()
    pairs = []
    for seed in seeds:
        rows = [next(row for row in each["seeds"] if row["seed"] == seed) for each in (variant, reference)]
        files = [next((job for job in row["jobs"] if job.startswith("eval/")), None) for row in rows]
        if None in files:
            return SampledDifference()
        first, second = (read_outcomes(folder / f"{file}.csv", metric) for file in files)
        pairs.append((first, second))
    return bootstrap_difference(pairs, metric=metric)


def _average(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def list_report_notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the numbers."""
    jobs, variants = document["jobs"], document["variants"]
    if jobs["finished"] < jobs["all"]:
        yield f"{jobs['finished']} of {jobs['all']} jobs have finished"
    if document["tuned"] is not None:
        chosen = ", ".join(f"{variant['tuned']} for {variant['variant']}" for variant in variants)
        yield f"{document['tuned']}: the best on data.val of the same values for each variant: {chosen}"
    if len({tuple(variant["seeds"]) for variant in variants if variant["seeds"]}) > 1:
        yield "a difference uses the seeds that both variants have; their means are over all of their seeds"
    if any(len(variant["seeds"]) == 1 for variant in variants):
        yield "one seed: no interval, and a difference may be the difference between any two runs"
    spreads = [spread for variant in variants for spread in (variant, variant["difference"]) if spread]
    if any(len(spread["values"]) > 1 and spread["interval"] is None for spread in spreads):
        yield "no interval and no p where all seeds have equal values"
    yield from _describe_videos([row["difference"] for row in variants if row["difference"]])
    for key, (words, _) in BASELINES.items():
        levels = sorted({round(variant[key], 6) for variant in variants if variant[key] is not None})
        if levels:
            yield f"{words}: {' or '.join(value_text(document['metric'], level) for level in levels)}"
    if any(variant["gmacs"] for variant in variants):
        yield "training GMACs are of forward passes; a backward pass takes about twice as many"
    if not document["comparable"]:
        yield "variants that predict different tokens have losses that do not compare; use another --metric"
    elif not document["higher_is_better"]:
        yield f"{document['title']}: less is better"
    started = {variant["init"] for variant in variants} - {FROM_SCRATCH}
    if started:
        yield "GMACs and time leave out the training of the weights that variants start from (init)"
    if any(SEED_FIELD not in init for init in started):
        yield "all seeds of a variant start from the same weights: the intervals do not cover their training"


def _describe_videos(differences: Sequence[Json]) -> Iterator[str]:
    """How many test videos and groups a difference has, and what this means for its interval."""
    sizes = {(each["videos"], each["groups"]) for each in differences if each["videos"]}
    for videos, groups in sorted(sizes):
        text = f"differences over {plural(videos, 'test video')}"
        text += f" of {plural(groups, 'group')}" if groups < videos else ""
        if groups == 1:
            text += ": no interval over groups"
        elif groups < FEW_GROUPS:
            text += f"; with fewer than {FEW_GROUPS}, their interval is widened by the t distribution"
        yield text


def draw_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a figure of the document of `everest sweep report --json`.

    A point is the mean of a variant, a bar its 95 % interval, a small dot a seed; GMACs are of its training.
    A second panel has the differences.
    """
    variants = [variant for variant in document["variants"] if variant["values"]]
    with saved_figure(path, (12, 1.5 + 0.4 * len(variants))) as figure:
        compared = [(row, each["difference"]) for row, each in enumerate(variants) if each["difference"]]
        panel, *others = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
        for row, variant in enumerate(variants):
            _draw_mean(panel, row, variant)
        for differences in others:
            for row, difference in compared:
                _draw_mean(differences, row, difference)
            differences.axvline(0, color="black", linewidth=1)
            differences.set_xlabel(f"Δ vs. {escape_dollars(shorten(document['against']))}, at equal seeds")
            differences.grid(alpha=0.3, axis="x")
        for key, (_, style) in BASELINES.items():
            for level in {variant[key] for variant in variants if variant[key] is not None}:
                panel.axvline(level, linestyle=style, color="black", linewidth=1, zorder=0)
        names = [
            f"{escape_dollars(shorten(each['variant']))}\n{each['gmacs']:.4g} GMACs" for each in variants
        ]
        panel.set_yticks(range(len(variants)), names, fontsize="small")
        panel.set_ylim(len(variants) - 0.5, -0.5)
        panel.set_xlabel(f"{escape_dollars(document['title'])}{' (%)' if document['percent'] else ''}")
        title = "bars: 95 % intervals; small dots: seeds; dotted: chance; dashed: most frequent class"
        panel.set_title(title, fontsize="small", loc="left")
        panel.grid(alpha=0.3, axis="x")


def _draw_mean(panel: Axes, row: int, spread: Json) -> None:
    mean, values = spread["mean"], spread["values"]
    low, high = spread["interval"] or (mean, mean)
    panel.plot(values, [row] * len(values), "o", ms=4, mfc="white", color="0.5")
    panel.errorbar([mean], [row], xerr=[[mean - low], [high - mean]], color=COLORS[0], marker="o", capsize=4)
