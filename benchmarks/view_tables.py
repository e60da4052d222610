"""The tables of features and of letters: means, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from held_out_clips import LETTERS, SETS
from measuring import difference_text, markdown

from everest.sweep.report import compare_pairs, spread

RANDOM, DIFFERENCES = "random encoder", "difference image"
BASELINES: Final = (RANDOM, DIFFERENCES)
COMPARED: Final = (RANDOM, DIFFERENCES, "everest")  # the rows that later ones are compared with
UNIFORM_AND_CHANGE: Final = (
    ("contrast, uniform", "contrast"),
    ("contrast, uniform and camera", "contrast and camera"),
    ("sigreg, uniform", "sigreg"),
    ("contrast, uniform", "contrast, importance"),
    ("sigreg, uniform", "sigreg, importance"),
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


def compared(own: dict[int, float], others: Iterable[dict[int, float]]) -> str:
    """The mean over the units of an arm, and its differences from other arms."""
    texts = (difference_text(compare_pairs(own, other)) for other in others)
    return "<br>".join([f"{spread(list(own.values())).mean:.1f}", *filter(None, texts)])


def by_unit(results: dict[str, dict[str, Any]], name: str, measure: str) -> dict[str, dict[int, float]]:
    """A measure of a set by arm and unit.

    An arm without the measure, such as an image, or of one or two units is left out.
    """
    values = {
        arm: {int(unit): found[name][measure] for unit, found in units.items() if measure in found[name]}
        for arm, units in results.items()
    }
    return {arm: units for arm, units in values.items() if len(units) > 2}


def features_table(results: dict[str, dict[str, Any]], measure: str) -> str:
    """For each arm its mean over the units, and the differences from `COMPARED` with 95 % intervals."""
    sets = list(next(iter(next(iter(results.values())).values())))
    of_sets = [by_unit(results, name, measure) for name in sets]
    rows = []
    for place, arm in enumerate(of_sets[0]):
        others = [each for each in list(of_sets[0])[:place] if each in COMPARED and arm not in BASELINES]
        cells = [compared(values[arm], [values[other] for other in others]) for values in of_sets]
        rows.append([arm, str(len(of_sets[0][arm])), *cells])
    return markdown(["pre-training", "units", *sets], rows)


def measures_table(results: dict[str, dict[str, Any]], name: str) -> str:
    """For each arm the means of all measures of one set, with the differences from `COMPARED`."""
    of_measures = [by_unit(results, name, measure) for measure in MEASURES]
    rows = []
    for arm, units in of_measures[0].items():
        cells = []
        for values in of_measures:
            others = [values[other] for other in COMPARED if other in values and other != arm]
            cells.append(compared(values[arm], [] if arm in BASELINES else others) if arm in values else "")
        rows.append([arm, str(len(units)), *cells])
    return markdown(["pre-training", "units", *MEASURES], rows)


def pairs_table(
    results: dict[str, dict[str, Any]],
    of_letters: dict[str, dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
) -> str:
    """The first arm of each pair less the second one, paired by unit, for each measure."""
    columns = [(results, name) for name in SETS]
    if any(first in of_letters and second in of_letters for first, second in pairs):
        columns.append((of_letters, LETTERS))
    rows = []
    for arms in pairs:
        for measure in MEASURES[:3]:
            cells = []
            for of_sets, name in columns:
                values = by_unit(of_sets, name, measure)
                first, second = (values.get(arm, {}) for arm in arms)  # not all arms were run on letters
                cells.append(difference_text(compare_pairs(first, second)))
            rows.append([" less ".join(arms), measure, *cells])
    return markdown(["arms", "measure", *(name for _, name in columns)], rows)


def letters_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Both arms with their difference, paired by seed, for each list."""
    rows = []
    for name, by_arm in results.items():
        before, after = ({int(seed): top1 for seed, top1 in units.items()} for units in by_arm.values())
        means = [f"{spread(list(units.values())).mean:.1f}" for units in (before, after)]
        rows.append([name, str(len(before)), *means, difference_text(compare_pairs(after, before))])
    return markdown(["list", "seeds", *results["test"], "difference"], rows)
