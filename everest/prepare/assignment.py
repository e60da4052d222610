"""The list of each group of samples, so that every list has its share of all samples and of every class.

S lists, C classes, G groups, E entries: pairs of a group and a class in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

NO_CLASS: Final = -1  # the class of samples without one
NOWHERE: Final = -1  # a group that is in no list yet
ROUNDING: Final = 1e-14  # of squared numbers of samples: a move or a swap that gains less gains nothing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign(
    groups: Sequence[Ints],
    labels: Sequence[int] | Sequence[tuple[int, ...]] | Ints,
    shares: Floats,
    rng: np.random.Generator,
) -> Ints:
    """The list of every group (G,).

    Large groups are placed first, each where it leaves the least squared distance from the shares; then
    single groups are moved, and pairs swapped, as long as that helps. At last, groups are moved so that each
    class with at least S groups is in each list, where that costs least. Groups of one class can always
    meet that; of several classes, some assignments that do are not found, or there is none.

    Args:
        groups: the samples of each.
        labels: the class or the classes of each sample, one at least.
        shares: (S,) that add up to one.
    """
    by_sample = [np.atleast_1d(label) for label in labels]
    flat = np.concatenate(by_sample)
    classes, numbers = np.unique(flat, return_inverse=True)
    class_of = np.split(numbers, np.cumsum([len(own) for own in by_sample])[:-1])
    wanted = np.append(np.bincount(numbers, minlength=len(classes)), len(labels))
    of_groups = [np.concatenate([class_of[sample] for sample in group]) for group in groups]
    sizes = [len(group) for group in groups]
    order = rng.permutation(len(groups))
    order = order[np.argsort([-sizes[group] for group in order], kind="stable")]
    state = _Assignment(of_groups, sizes, len(classes), lacking=wanted[:, None] * shares)
    least = max(1e-9, ROUNDING * len(labels) ** 2)
    for group in order:
        state.move(group, least=least)
    state.improve(order, least=least)
    while state.cover():  # ends, as fewer classes are missing every time
        state.improve(order, least=least)
    return state.chosen


class _Assignment:
    """The list of each group. A group has an entry for each of its classes, and one for all its samples."""

    def __init__(
        self, of_groups: Sequence[Ints], sizes: Sequence[int], num_classes: int, *, lacking: Floats
    ) -> None:
        counted = [np.unique(classes, return_counts=True) for classes in of_groups]
        # (E,) the row of each entry in `lacking`, and its number of samples.
        self._rows = np.concatenate([np.append(classes, num_classes) for classes, _ in counted])
        self._counts = np.concatenate(
            [np.append(counts, size) for (_, counts), size in zip(counted, sizes, strict=True)]
        )
        self._first = np.cumsum([0, *(len(classes) + 1 for classes, _ in counted)])  # (G + 1,) of each group
        # (C + 1, S) samples, and groups that are there; the last row counts all classes together.
        self._lacking = lacking
        self._present = np.zeros(lacking.shape, dtype=np.int64)
        self._needed = np.zeros(len(lacking), dtype=bool)  # (C + 1,) classes that have to be in each list
        # More than any move changes the distance. Only differences of missing classes are multiplied by it,
        # so that moves that change none of them are compared exactly.
        self._worth = 4.0 * lacking.shape[1] * float((lacking.sum(axis=1) ** 2).sum())
        self.chosen = np.full(len(sizes), NOWHERE)  # (G,)

    def _entries(self, group: int) -> tuple[Ints, Ints]:
        """The rows and counts of one group."""
        entries = slice(self._first[group], self._first[group + 1])
        return self._rows[entries], self._counts[entries]

    def _changes(self) -> tuple[Floats, Ints, Floats]:
        """(G, S) what moving a group to each list adds to the distance, to the missing classes, and its cost.

        The distance is positive for the list that the group is in. A missing class is worth more than any
        distance.
        """
        counts, lists = self._counts[:, None], np.repeat(self.chosen, np.diff(self._first))[:, None]  # (E, 1)
        lacking, present = self._lacking[self._rows], self._present[self._rows]  # (E, S)
        changes = 2 * counts * (counts + np.take_along_axis(lacking, lists, axis=1) - lacking)
        is_last = np.take_along_axis(present, lists, axis=1) == 1  # (E, 1)
        missing = (is_last.astype(np.int64) - (present == 0)) * self._needed[self._rows][:, None]
        first = self._first[:-1]
        changes, missing = np.add.reduceat(changes, first, axis=0), np.add.reduceat(missing, first, axis=0)
        return changes, missing, changes + self._worth * missing

    def _put(self, group: int, target: int) -> None:
        """Move a group from its list to another; to or from `NOWHERE`, too."""
        rows, counts = self._entries(group)
        for place, sign in ((int(self.chosen[group]), 1), (target, -1)):
            if place != NOWHERE:
                self._lacking[rows, place] += sign * counts
                self._present[rows, place] -= sign
        self.chosen[group] = target

    def move(self, group: int, *, least: float) -> bool:
        """Move a group to the list where it fits best, if that gains `least`; returns whether it moved.

        A group that is in no list yet is moved in any case.
        """
        rows, counts = self._entries(group)
        before = int(self.chosen[group])
        self._put(group, NOWHERE)
        # (S,) what it adds to the distance in each list: (lacking - counts)^2 - lacking^2 over its entries
        costs = (counts[:, None] * (counts[:, None] - 2 * self._lacking[rows])).sum(axis=0)
        found = ((self._present[rows] == 0) & self._needed[rows][:, None]).sum(axis=0)  # (S,)
        costs += self._worth * (found[before] - found)
        best = int(costs.argmin())
        if before != NOWHERE and costs[best] > costs[before] - least:
            best = before
        self._put(group, best)
        return best != before

    def improve(self, order: Ints, *, least: float) -> None:
        """Move single groups, and swap pairs, as long as that helps."""
        while True:  # ends, as the distance falls every time
            *_, costs = self._changes()
            helpful = order[costs[order].min(axis=1) < -least]
            moved = [self.move(group, least=least) for group in helpful]
            if not any(moved) and not self._swap(least=least):
                return

    def cover(self) -> bool:
        """Move groups to lists that lack one of their classes, the cheapest first; returns whether any moved.

        From then on, moves and swaps that take the last group of a class from a list do not help.
        """
        groups = np.bincount(self._rows, minlength=len(self._lacking))  # (C + 1,) of each class
        self._needed = groups >= self._lacking.shape[1]
        self._needed[-1] = False
        covered = False
        while True:
            _, missing, costs = self._changes()
            group, target = np.unravel_index(int(costs.argmin()), costs.shape)
            if missing[group, target] >= 0:
                return covered
            self._put(int(group), int(target))
            covered = True

    def _swap(self, *, least: float) -> bool:
        """For each two lists, move the cheapest group to the other and the cheapest back, while both help.

        For assignments that no single move improves: most often, each of two classes has one sample too many
        where the other lacks one. Returns whether any swap helped.
        """
        swapped = False
        for here, there in itertools.permutations(range(self._lacking.shape[1]), 2):
            while True:
                saved = self._lacking.copy(), self._present.copy(), self.chosen.copy()
                sent, lost = self._send_cheapest(here, there)
                returned, lost_again = self._send_cheapest(there, here)
                missing = lost + lost_again
                if missing > 0 or (missing == 0 and sent + returned > -least):
                    self._lacking, self._present, self.chosen = saved
                    break
                swapped = True
        return swapped

    def _send_cheapest(self, here: int, there: int) -> tuple[float, int]:
        """Move the group that costs least; returns what it adds to the distance, and to the missing classes.

        The distance is infinity without any group.
        """
        changes, missing, costs = self._changes()
        costs = np.where(self.chosen == here, costs[:, there], np.inf)  # (G,)
        best = int(costs.argmin())
        if costs[best] == np.inf:
            return np.inf, 0
        self._put(best, there)
        return float(changes[best, there]), int(missing[best, there])
