"""The tables of benchmarks/evidence/tables.md: claims, sweeps on real clips, features and letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from held_out_clips import LETTERS, SETS
from measuring import difference_text, markdown
from run_evidence import CLIPS, LABELED

from everest.config.yaml import read_yaml
from everest_workflows.sweep.report import make_report
from everest_workflows.sweep.statistics import compare_pairs, find_spread

RANDOM, DIFFERENCES = "random encoder", "difference image"
BASELINES: Final = (RANDOM, DIFFERENCES)
COMPARED: Final = (RANDOM, DIFFERENCES, "everest")  # the rows that later ones are compared with
UNIFORM_AND_CHANGE: Final = (
    ("contrast, uniform", "contrast"),
    ("contrast, uniform and camera", "contrast and camera"),
    ("contrast, uniform", "contrast, importance"),
)
VARIATIONS: Final = tuple(
    (f"the same, {change}", "the same, trained again")
    for change in (
        "4 times the steps",
        "twice the width",
        "twice the batch",
        "frames as input",
        "smaller crops",
    )
)
MEASURES: Final = ("linear", "knn", "retrieval", "few", "attentive")
FILE: Final = Path(__file__).with_name("evidence") / "claims.yaml"
MARGIN: Final = 3.0  # points, our choice: a smaller loss counts as none
UNRESOLVED: Final = "not resolvable at this size"
CONTENT: Final = {  # of the labeled sets of real clips
    "surveillance2": "fights or none, of cameras that rest",
    "interaction6": "two people shake hands, hug, kick, point, punch or push; the camera rests",
    "tennis7": "tennis strokes, filmed by the audience",
    "weizmann10": "whole-body actions filmed by a camera that rests; test clips of one person",
    "cameramotion8": "a simulated camera over frames of other clips; its motion is the class",
}
Results = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about two variants of a part: that the first is better, or that it is not worse."""

    part: str
    variants: tuple[str, str]
    text: str
    origin: str
    better: bool = True  # otherwise: not worse by MARGIN
    metric: str | None = None  # of the results; None: that of the part

    def summary(self, low: float, high: float) -> str:
        """The meaning of the 95 % interval of the first variant minus the second."""
        least = 0.0 if self.better else -MARGIN
        if low > least:
            return "seen"
        return "the opposite is seen" if high < least else UNRESOLVED

    def difference(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The first variant minus the second; None if one of them has no results."""
        measured = {variant["variant"] for variant in results["variants"]}
        if not measured.issuperset(self.variants):  # a labeled set was left out
            return None
        report = make_report(results, metric=self.metric, against=self.variants[1])
        return next(
            variant["difference"] for variant in report["variants"] if variant["variant"] == self.variants[0]
        )

    def of_set(self, name: str) -> Claim:
        """The claim about a labeled set of real clips."""
        return replace(self, variants=tuple(f"{variant}, {name}" for variant in self.variants))


def without_interval(difference: dict[str, Any]) -> str:
    """Why a difference has no interval."""
    return "one seed" if len(difference["seeds"]) == 1 else "all seeds alike"


_ROWS: Final[Any] = read_yaml(FILE.read_text(), FILE.name)
CLAIMS: Final = tuple(Claim(**{**row, "variants": tuple(row["variants"])}) for row in _ROWS["claims"])
CLIPS_CLAIMS: Final = tuple(Claim(**{**row, "variants": tuple(row["variants"])}) for row in _ROWS["clips"])


def sets_table(results: Results) -> str:
    """The labeled sets of real clips."""
    counts = {
        name: count for part in CLIPS if part in results for name, count in results[part]["videos"].items()
    }
    rows = []
    for name, content in CONTENT.items():
        classes = LABELED[name]
        videos = (str(counts.get(f"{name} {part}", "")) for part in ("train", "test"))
        fractions = [f"{100 / classes:.1f} %", _largest_class(results, name)]
        rows.append([f"`{name}`", content, str(classes), *fractions, *videos])
    return markdown(["set", "clips", "classes", "chance", "largest class", "train", "test"], rows)


def _largest_class(results: Results, name: str) -> str:
    """The fraction of the test clips that an answer with the most frequent class gets right."""
    variants = (variant for part in CLIPS if part in results for variant in results[part]["variants"])
    fractions = (
        row["metrics"]["majority_top1"]
        for variant in variants
        if variant["variant"].endswith(f", {name}")
        for row in variant["seeds"]
    )
    fraction = next(fractions, None)
    return "" if fraction is None else f"{fraction:.1f} %"


def clips_claims(results: Results) -> str:
    """Each claim about real clips, with the difference that was measured on each labeled set."""
    rows = [
        [claim.text, claim.origin, *(_clips_cell(claim.of_set(name), results) for name in LABELED)]
        for claim in CLIPS_CLAIMS
    ]
    return markdown(["claim", "paper", *LABELED], rows)


def _clips_cell(claim: Claim, results: Results) -> str:
    part = results.get(claim.part)
    if part is None or (difference := claim.difference(part)) is None:
        return "not measured"
    if difference["interval"] is None:
        return f"{difference['mean']:+.1f}: {without_interval(difference)}"
    numbers = _with_interval(difference["mean"], difference["interval"], sign="+")
    summary = claim.summary(*difference["interval"])
    return numbers if summary == UNRESOLVED else f"**{numbers}: {summary}**"


def clips_table(document: dict[str, Any]) -> str:
    """The variants of a part on real clips, with a column for each labeled set."""
    found = _reports(document)
    method = document["against"].rpartition(", ")[0]
    rows = [
        [
            variants[0]["variant"],
            f"{variants[0]['gmacs']:.4g}",
            *map(_accuracy, variants),
        ]  # the sets cost about the same
        for variants in zip(*(report["variants"] for report in found.values()), strict=True)
    ]
    below = f"below, the difference from *{method}*, bold if zero is outside its interval"
    table = markdown(["variant", "GMACs of training", *found], rows)
    return f"Top-1 accuracy in percent (95 % interval); {below}:\n\n{table}"


def _accuracy(variant: dict[str, Any]) -> str:
    """The mean of a variant and, below, its difference from the variant that all are compared with."""
    mean, difference = _with_interval(variant["mean"], variant["interval"]), variant["difference"]
    if difference is None:
        return mean
    less = _with_interval(difference["mean"], difference["interval"], sign="+")
    low, high = difference["interval"] or (0, 0)
    return f"{mean}<br>{less}" if low <= 0 <= high else f"{mean}<br>**{less}**"


def _with_interval(value: float, interval: Sequence[float] | None, *, sign: str = "") -> str:
    if interval is None:
        return f"{value:{sign}.1f}"
    return f"{value:{sign}.1f} ({interval[0]:{sign}.1f} to {interval[1]:{sign}.1f})"


def _reports(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The report of each labeled set, whose variants are compared with each other only."""
    method = document["against"].rpartition(", ")[0]
    found = {}
    for name in (name.removesuffix(" train") for name in document["videos"] if name.endswith(" train")):
        own = [variant for variant in document["variants"] if variant["variant"].endswith(f", {name}")]
        variants = [variant | {"variant": variant["variant"].removesuffix(f", {name}")} for variant in own]
        found[name] = make_report(document | {"variants": variants, "against": method})
    return found


def compared(own: dict[int, float], others: Iterable[dict[int, float]]) -> str:
    """The mean over the units of a variant, and its differences from other variants."""
    texts = (difference_text(compare_pairs(own, other)) for other in others)
    return "<br>".join([f"{find_spread(list(own.values())).mean:.1f}", *filter(None, texts)])


def by_unit(results: dict[str, dict[str, Any]], name: str, measure: str) -> dict[str, dict[int, float]]:
    """A measure of a set by variant and unit.

    A variant without the measure, such as an image, or of one or two units is left out.
    """
    values = {
        variant: {int(unit): found[name][measure] for unit, found in units.items() if measure in found[name]}
        for variant, units in results.items()
    }
    return {variant: units for variant, units in values.items() if len(units) > 2}


def features_table(results: dict[str, dict[str, Any]], measure: str) -> str:
    """For each variant its mean over the units, and the differences from `COMPARED` with 95 % intervals."""
    sets = list(next(iter(next(iter(results.values())).values())))
    of_sets = [by_unit(results, name, measure) for name in sets]
    rows = []
    for place, variant in enumerate(of_sets[0]):
        others = [each for each in list(of_sets[0])[:place] if each in COMPARED and variant not in BASELINES]
        cells = [compared(values[variant], [values[other] for other in others]) for values in of_sets]
        rows.append([variant, str(len(of_sets[0][variant])), *cells])
    return markdown(["pre-training", "units", *sets], rows)


def measures_table(results: dict[str, dict[str, Any]], name: str) -> str:
    """For each variant the means of all measures of one set, with the differences from `COMPARED`."""
    of_measures = [by_unit(results, name, measure) for measure in MEASURES]
    rows = []
    for variant, units in of_measures[0].items():
        cells = []
        for values in of_measures:
            others = [values[other] for other in COMPARED if other in values and other != variant]
            cells.append(
                compared(values[variant], [] if variant in BASELINES else others) if variant in values else ""
            )
        rows.append([variant, str(len(units)), *cells])
    return markdown(["pre-training", "units", *MEASURES], rows)


def pairs_table(
    results: dict[str, dict[str, Any]],
    of_letters: dict[str, dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
) -> str:
    """The first variant of each pair less the second one, paired by unit, for each measure."""
    columns = [(results, name) for name in SETS]
    if any(first in of_letters and second in of_letters for first, second in pairs):
        columns.append((of_letters, LETTERS))
    rows = []
    for variants in pairs:
        for measure in MEASURES[:3]:
            cells = []
            for of_sets, name in columns:
                values = by_unit(of_sets, name, measure)
                # Not all variants were run on letters.
                first, second = (values.get(variant, {}) for variant in variants)
                cells.append(difference_text(compare_pairs(first, second)))
            rows.append([" less ".join(variants), measure, *cells])
    return markdown(["variants", "measure", *(name for _, name in columns)], rows)


def letters_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Both variants with their difference, paired by seed, for each list."""
    rows = []
    for name, by_variant in results.items():
        before, after = ({int(seed): top1 for seed, top1 in units.items()} for units in by_variant.values())
        means = [f"{find_spread(list(units.values())).mean:.1f}" for units in (before, after)]
        rows.append([name, str(len(before)), *means, difference_text(compare_pairs(after, before))])
    return markdown(["list", "seeds", *results["test"], "difference"], rows)
