"""Cut a data set into lists: whole groups, each class in the same shares, the same cut for the same seed.

S lists, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.data.list_writing import (
    names_needed,
    refuse_existing,
    refuse_unlistable,
    write_list,
    write_names,
)
from everest.data.lists import Sample
from everest.errors import RecipeError
from everest.prepare.groups import GroupOf
from everest.prepare.index import CLASSES

NAMES: Final = ("train", "val", "test")
MOST_PASSES: Final = 20  # over all groups; the third rarely moves any

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def read_shares(text: str) -> dict[str, float]:
    """The shares of `80/10/10` (train, val, test) or `80/20` (train, test), as parts of one.

    Raises:
        RecipeError: anything else.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 < number < float("inf") for number in numbers):
        raise RecipeError(
            f"--shares {text}: give two (train/test) or three (train/val/test), such as 80/10/10"
        )
    names = NAMES if len(numbers) == 3 else ("train", "test")
    return {name: number / sum(numbers) for name, number in zip(names, numbers, strict=True)}


def split_samples(
    samples: Sequence[Sample], shares: Mapping[str, float], *, group_of: GroupOf, seed: int
) -> dict[str, list[Sample]]:
    """Share samples out by whole groups, so that each list has its share of all samples and of every class.

    Large groups are placed first, each where it leaves the least squared distance from the shares; then
    single groups are moved as long as that helps. Samples keep their order. Of several labels the first is
    balanced.
    """
    members: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        members.setdefault(group_of(sample), []).append(number)
    groups = [np.array(numbers) for numbers in members.values()]
    labels = np.array([sample.labels[0] if sample.labels else 0 for sample in samples])
    chosen = assign(groups, labels, np.array(list(shares.values())), np.random.default_rng(seed))
    list_of = np.zeros(len(samples), dtype=np.int64)
    for group, target in zip(groups, chosen, strict=True):
        list_of[group] = target
    return {
        name: [sample for sample, place in zip(samples, list_of.tolist(), strict=True) if place == number]
        for number, name in enumerate(shares)
    }


def assign(groups: Sequence[Ints], labels: Ints, shares: Floats, rng: np.random.Generator) -> Ints:
    """The list of every group (G,).

    Args:
        groups: the samples of each.
        labels: (samples,) from 0.
        shares: (S,) that add up to one.
    """
    classes, places = np.unique(labels, return_inverse=True)
    # Of each group its classes and how many of each.
    counts = [np.unique(places[group], return_counts=True) for group in groups]
    # What each list still lacks (C + 1, S); the last row counts all classes together.
    wanted = np.append(np.bincount(places, minlength=len(classes)), len(labels))
    lacking = wanted[:, None] * shares
    rows = [(np.append(which, len(classes)), np.append(many, many.sum())[:, None]) for which, many in counts]
    order = rng.permutation(len(groups))
    order = order[np.argsort([-len(groups[group]) for group in order], kind="stable")]
    chosen = np.zeros(len(groups), dtype=np.int64)
    for group in order:
        chosen[group] = _costs(lacking, *rows[group]).argmin()
        lacking[rows[group][0], chosen[group]] -= rows[group][1][:, 0]
    for _ in range(MOST_PASSES):
        moved = [_move(lacking, chosen, group, *rows[group]) for group in order]
        if not any(moved):
            break
    return chosen


def _costs(lacking: Floats, rows: Ints, many: Ints) -> Floats:
    """(S,) how much a group in each list adds to the distance: (lacking - many)^2 - lacking^2, all rows."""
    return (many * (many - 2 * lacking[rows])).sum(axis=0)


def _move(lacking: Floats, chosen: Ints, group: int, rows: Ints, many: Ints) -> bool:
    """Put a group where it fits best now; tells whether that is another list."""
    before = int(chosen[group])
    lacking[rows, before] += many[:, 0]
    costs = _costs(lacking, rows, many)
    best = int(costs.argmin())
    if costs[best] >= costs[before] - 1e-9:
        best = before
    lacking[rows, best] -= many[:, 0]
    chosen[group] = best
    return best != before


def write_split(
    lists: Mapping[str, Sequence[Sample]],
    folder: Path,
    *,
    root: Path,
    names: Sequence[str],
    heads: Sequence[str],
    source: Path,
    overwrite: bool,
) -> list[Path]:
    """Write `NAME.csv` for each list that has samples, and `classes.txt`; returns the files.

    Raises:
        DataError: a path that no list can hold; nothing is written.
        RecipeError: one exists and may not be replaced, or is the list that was cut.
        EnvironmentProblem: one cannot be written.
    """
    paths = {name: folder / f"{name}.csv" for name, samples in lists.items() if samples}
    written = [*paths.values(), *([folder / CLASSES] if names else [])]
    refuse_existing(written, overwrite=overwrite, read=[source])
    refuse_unlistable(sample for samples in lists.values() for sample in samples)
    for name, path in paths.items():
        write_list(path, lists[name], root=root, label_names=names_needed(names), heads=heads)
    if names:
        write_names(folder / CLASSES, names)
    return written
