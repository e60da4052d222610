"""Divide a data set into lists: whole groups of videos, each class in the same shares, reproducible by seed.

everest.prepare.groups forms the groups.

S lists, C classes, G groups, E entries: pairs of a group and a class in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.data.list_writing import (
    names_to_write,
    refuse_existing,
    refuse_unlistable,
    write_lines,
    write_list,
)
from everest.data.samples import Sample
from everest.errors import RecipeError
from everest.prepare.groups import GroupOf
from everest.prepare.index import CLASSES

NAMES: Final = ("train", "val", "test")
NOWHERE: Final = -1  # a group that is in no list yet
ROUNDING: Final = 1e-14  # of squared numbers of samples: a move or a swap that gains less gains nothing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def read_shares(text: str) -> dict[str, float]:
    """The shares of `80/10/10` (train, val, test) or `80/20` (train, test), which add up to one.

    Raises:
        RecipeError: any other text.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 < number < float("inf") for number in numbers):
        raise RecipeError(f"--shares {text}: give two (train/test) or three (train/val/test): 80/10/10")
    names = NAMES if len(numbers) == 3 else ("train", "test")
    return {name: number / sum(numbers) for name, number in zip(names, numbers, strict=True)}


def split_samples(
    samples: Sequence[Sample], shares: Mapping[str, float], *, group_of: GroupOf, seed: int
) -> dict[str, list[Sample]]:
    """Assign whole groups to lists, so that each list has its share of all samples and of every class.

    Large groups are placed first, each where it leaves the least squared distance from the shares; then
    single groups are moved, and pairs swapped, as long as that helps. Samples keep their order. The first of
    several labels is balanced.
    """
    members: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        members.setdefault(group_of(sample), []).append(number)
    groups = [np.array(numbers) for numbers in members.values()]
    labels = np.array([sample.labels[0] if sample.labels else 0 for sample in samples])
    chosen = assign(groups, labels, np.array(list(shares.values())), np.random.default_rng(seed))
    lists = {}
    for number, name in enumerate(shares):
        indices = [groups[group] for group in np.flatnonzero(chosen == number)]
        lists[name] = [samples[index] for index in sorted(itertools.chain(*indices))]
    return lists


def assign(groups: Sequence[Ints], labels: Ints, shares: Floats, rng: np.random.Generator) -> Ints:
    """The list of every group (G,).

    Args:
        groups: the samples of each.
        labels: (samples,) from 0.
        shares: (S,) that add up to one.
    """
    classes, class_of = np.unique(labels, return_inverse=True)
    wanted = np.append(np.bincount(class_of, minlength=len(classes)), len(labels))
    order = rng.permutation(len(groups))
    order = order[np.argsort([-len(groups[group]) for group in order], kind="stable")]
    state = _Assignment(groups, class_of, len(classes), lacking=wanted[:, None] * shares)
    for group in order:
        state.place(group)
    least = max(1e-9, ROUNDING * len(labels) ** 2)
    while True:  # ends, as the distance falls every time
        helpful = order[state.changes()[order].min(axis=1) < -least]
        moved = [state.place(group, least=least) for group in helpful]
        if not any(moved) and not state.swap(least=least):
            return state.chosen


class _Assignment:
    """The list of each group. A group has an entry for each of its classes, and one for all its samples."""

    def __init__(self, groups: Sequence[Ints], class_of: Ints, num_classes: int, *, lacking: Floats) -> None:
        counted = [np.unique(class_of[group], return_counts=True) for group in groups]
        # (E,) the row of each entry in `lacking`, and its number of samples.
        self._rows = np.concatenate([np.append(classes, num_classes) for classes, _ in counted])
        self._counts = np.concatenate([np.append(counts, counts.sum()) for _, counts in counted])
        self._first = np.cumsum([0, *(len(classes) + 1 for classes, _ in counted)])  # (G + 1,) of each group
        self._lacking = lacking  # (C + 1, S) samples; the last row counts all classes together
        self.chosen = np.full(len(groups), NOWHERE)  # (G,)

    def _entries(self, group: int) -> tuple[Ints, Ints]:
        """The rows and counts of one group."""
        entries = slice(self._first[group], self._first[group + 1])
        return self._rows[entries], self._counts[entries]

    def changes(self) -> Floats:
        """(G, S) how much moving a group to each list adds to the distance; positive for its own list."""
        counts, lists = self._counts[:, None], np.repeat(self.chosen, np.diff(self._first))[:, None]  # (E, 1)
        lacking = self._lacking[self._rows]  # (E, S)
        changes = 2 * counts * (counts + np.take_along_axis(lacking, lists, axis=1) - lacking)
        return np.add.reduceat(changes, self._first[:-1], axis=0)

    def place(self, group: int, *, least: float = 0.0) -> bool:
        """Put a group into the list where it fits best; returns whether it moved, which gains `least`."""
        rows, counts = self._entries(group)
        before = int(self.chosen[group])
        if before != NOWHERE:
            self._lacking[rows, before] += counts
        # (S,) what it adds to the distance in each list: (lacking - counts)^2 - lacking^2 over its entries
        costs = (counts[:, None] * (counts[:, None] - 2 * self._lacking[rows])).sum(axis=0)
        best = int(costs.argmin())
        if before != NOWHERE and costs[best] > costs[before] - least:
            best = before
        self._lacking[rows, best] -= counts
        self.chosen[group] = best
        return best != before

    def swap(self, *, least: float) -> bool:
        """For each two lists, move the cheapest group to the other and the cheapest back, while both help.

        For assignments that no single move improves: most often, each of two classes has one sample too many
        where the other lacks one. Returns whether any swap helped.
        """
        swapped = False
        for here, there in itertools.permutations(range(self._lacking.shape[1]), 2):
            while True:
                saved = self._lacking.copy(), self.chosen.copy()
                if self._send_cheapest(here, there) + self._send_cheapest(there, here) > -least:
                    self._lacking, self.chosen = saved
                    break
                swapped = True
        return swapped

    def _send_cheapest(self, here: int, there: int) -> float:
        """Move the group that adds least to the distance; returns how much, infinity without any group."""
        changes = np.where(self.chosen == here, self.changes()[:, there], np.inf)  # (G,)
        best = int(changes.argmin())
        rows, counts = self._entries(best)
        self._lacking[rows, here] += counts
        self._lacking[rows, there] -= counts
        self.chosen[best] = there
        return float(changes[best])


def write_split(
    lists: Mapping[str, Sequence[Sample]],
    folder: Path,
    *,
    root: Path,
    names: Sequence[str],
    heads: Sequence[str],
    read: Sequence[Path],
    overwrite: bool,
) -> list[Path]:
    """Write `NAME.csv` for each list that has samples, and `classes.txt`; returns the files.

    Args:
        read: the files that were read.
    Raises:
        DataError: a path that no list can hold; nothing is written.
        RecipeError: a file exists and may not be replaced, is one of `read`, or would remain from
            another split.
        EnvironmentProblem: a file cannot be written.
    """
    paths = {name: folder / f"{name}.csv" for name, samples in lists.items() if samples}
    written = [*paths.values(), *([folder / CLASSES] if names else [])]
    refuse_existing(written, overwrite=overwrite, read=read)
    for old in (folder / f"{name}.csv" for name in NAMES if name not in paths):
        if old.exists():
            raise RecipeError(f"{old}: would remain from another split; remove it, or choose another folder")
    refuse_unlistable(sample for samples in lists.values() for sample in samples)
    for name, path in paths.items():
        write_list(path, lists[name], root=root, label_names=names_to_write(names), heads=heads)
    if names:
        write_lines(folder / CLASSES, names)
    return written
