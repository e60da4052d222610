"""What is written of a time budget: its methods, its table, and its page."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from everest import __version__
from everest.evaluation.page import PageContent, Section
from everest.system.text import plural
from everest_workflows.annotations.bout import Bouts
from everest_workflows.recordings.budget_files import SavedFootage
from everest_workflows.recordings.checked_windows import find_checked_windows, sample_windows
from everest_workflows.recordings.window_plan import read_training_methods

TITLES: Final = (
    "class",
    "seconds (95 % CI)",
    "% of the time",
    "bouts (95 % CI)",
    "checked windows alone",
    "% seen",
)
MAX_CLASSES: Final = 4  # default: in the answer


def describe_methods(
    document: Mapping[str, Any],
    footage: SavedFootage,
    checked: Bouts,
    strata: Sequence[Collection[str]],
    seed: int,
) -> str:
    """Describe the estimate as a publication does.

    Args:
        document: of `compute_time_budget`.
        checked: the checked windows, and the bouts in them.
        strata: the groups of recordings in which windows were sampled; empty: in all recordings together.
        seed: named, if windows sampled with it are the checked ones.
    """
    length = document["window"]
    _, sampled, _ = find_checked_windows(footage.extents, checked, length)
    numbers = [sum(each.video in videos for each in sampled) for videos in strata or [footage.extents]]
    redrawn = sample_windows(footage.extents, {}, length, max(numbers), seed=seed, strata=strata)
    seeded = f" (NumPy, seed {seed})" if set(redrawn) == set(sampled) else ""
    number = " to ".join(map(str, sorted({min(numbers), max(numbers)})))
    stratified = f", {number} in each of {len(strata)} groups of recordings" if strata else ""
    averaged = f", with probabilities averaged over {footage.smooth:g} s" if footage.smooth else ""
    has_groups = any(row["group"] for row in document["rows"])
    pooled = " Error rates of groups were pooled over the groups (random effects)." if has_groups else ""
    return (
        f"{read_training_methods(footage.model)}A model of everest {__version__} predicted all "
        f"{document['footage']:.1f} s of footage{averaged}. A person watched {document['checked']} of "
        f"{document['windows']} windows of {length:g} s{stratified}, sampled at random{seeded}. "
        "The seconds and bouts of each class were estimated by prediction-powered inference with power "
        "tuning (Angelopoulos et al. 2023, arXiv 2311.01453), with 95 % score intervals (Wilson 1927); "
        f"classes whose interval the model does not make narrower, without it.{pooled} The intervals cover "
        "the sampling of windows in these recordings (for bouts, also the share that begins exactly with a "
        "window), not other animals or recordings."
    )


def list_table_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """Yield the rows of a CSV, one for each group and class; `group` is empty for all recordings together."""
    plain = "group", "class", "seconds", "percent", "minutes_per_hour", "bouts", "mean_bout", "se"
    yield (
        *(*plain, "low", "high", "model", "watched_only", "watched_only_low", "watched_only_high"),
        *("bouts_low", "bouts_high", "checked_percent", "borrowed", "saved_windows"),
    )
    for row in rows:
        alone = row["watched_only"]
        values = *(row[name] for name in plain), *row["interval"], row["model"], alone["seconds"]
        ends = *alone["interval"], *row["bouts_interval"], row["checked_percent"], row["borrowed"]
        yield ["" if value is None else str(value) for value in (*values, *ends, row["saved_windows"])]


def summarize_budget(document: Mapping[str, Any], notes: Sequence[str], figure: str | None) -> PageContent:
    """What the page of `everest budget` shows.

    Args:
        document: of `everest budget --json`.
        notes: on the scope of the estimates.
        figure: path of a PNG of the fractions of the time.
    """
    windows = plural(document["windows"], "window")
    by_group = {name: [*rows] for name, rows in groupby(document["rows"], key=itemgetter("group"))}
    table = [
        [name or "All recordings", *(_with_interval(row["seconds"], row["interval"]) for row in rows)]
        for name, rows in by_group.items()
    ]
    names = ["", *(row["class"] for row in by_group[""])]
    sections = [Section(heading="Seconds (95 % CI)", titles=names, rows=table, figure=figure)]
    for group, of_group in by_group.items():
        checked = f"{plural(of_group[0]['windows'], 'checked window')}."
        cells = [_list_cells(row) for row in of_group]
        sections.append(
            Section(heading=group or "All recordings", lines=[checked], titles=TITLES, rows=cells)
        )
    first = [row for row in document["rows"] if not row["group"]][:MAX_CLASSES]
    amounts = (
        "{} {:.1f} s ({:.1f} to {:.1f})".format(row["class"], row["seconds"], *row["interval"])
        for row in first
    )
    return PageContent(
        title="Time budget",
        answer=[
            f"estimated time: {'; '.join(amounts)}",
            f"of {document['footage']:.1f} s; 95 % CI, from {document['checked']} checked of {windows} of "
            f"{document['window']:g} s",
            f"the model saves {100 * document['saved_windows']:.0f} % of the windows",
        ],
        details={"Scope": notes},
        sections=sections,
        methods=document["methods"],
    )


def _list_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    alone, seen = row["watched_only"], row["checked_percent"]
    return (
        row["class"],
        _with_interval(row["seconds"], row["interval"]),
        f"{row['percent']:.1f}",
        _with_interval(row["bouts"], row["bouts_interval"]),
        _with_interval(alone["seconds"], alone["interval"]) + mark_alone(row),
        "" if seen is None else f"{seen:.1f}",
    )


def mark_alone(row: Mapping[str, Any]) -> str:
    """The mark of an estimate without the model."""
    return "" if row["saved_windows"] else "*"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
