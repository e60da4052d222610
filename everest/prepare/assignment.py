"""Assigns groups of samples to lists, so that every list has its fraction of all samples and of every class.

S lists, C classes, G groups, E entries: pairs of a group and a class in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.system.types import Floats

NO_CLASS: Final = -1  # the class of samples without one
NO_LIST: Final = -1  # the list of a group that is in no list yet
ROUNDING: Final = 1e-14  # a gain below this, relative to the squared number of samples, is a rounding error

Ints = NDArray[np.int64]


def assign_to_lists(
    groups: Sequence[Ints], labels: Sequence[tuple[int, ...]], fractions: Floats, rng: np.random.Generator
) -> Ints:
    """Assign every group to a list, and return the lists, (G,).

    Large groups are placed first, each where it leaves the least squared distance from the fractions. Then
    single groups are moved, and pairs change places, as long as that helps. A class of at least S groups that
    is missing in a list counts more than any distance. With one class per group, no such class is missing;
    with several classes, an assignment without missing classes may not exist or not be found.

    Args:
        groups: the samples of each group.
        labels: the classes of each sample, at least one per sample.
        fractions: (S,) fractions of the lists, which add up to one.
    """
    assignment = _Assignment(groups, labels, fractions)
    order = rng.permutation(len(groups))
    order = order[np.argsort([-len(groups[group]) for group in order], kind="stable")]
    for group in order:
        assignment.assign_group(group)
    while assignment.move_groups(order) or assignment.swap_groups():  # ends, as the distance falls every time
        pass
    return assignment.list_of_group


class _Assignment:
    """The list of each group. A group has an entry for each of its classes, and one for all its samples.

    The rows of (C + 1, S) tables are the classes and, last, all samples.
    """

    def __init__(self, groups: Sequence[Ints], labels: Sequence[tuple[int, ...]], fractions: Floats) -> None:
        names, classes = np.unique(np.concatenate(labels), return_inverse=True)
        group_of = np.empty(len(labels), dtype=np.int64)
        for group, members in enumerate(groups):
            group_of[members] = group
        group_of_label = np.repeat(group_of, list(map(len, labels)))
        rows = len(names) + 1
        in_rows = np.concatenate([group_of_label * rows + classes, group_of * rows + rows - 1])
        entries, self._counts = np.unique(in_rows, return_counts=True)  # (E,)
        self._rows = entries % rows
        self._starts = np.searchsorted(entries, rows * np.arange(len(groups) + 1))  # (G + 1,) first entries
        # (C + 1, S) number of samples that each list still lacks.
        self._deficits = np.bincount(self._rows, self._counts)[:, None] * fractions
        self._num_groups = np.zeros(self._deficits.shape, dtype=np.int64)  # groups in each list
        self._is_needed = np.bincount(self._rows) >= len(fractions)  # classes needed in each list
        self._is_needed[-1] = False
        # The cost of a missing class exceeds any change of distance by a move. Only differences of missing
        # classes are multiplied by it, so that moves without such differences are compared exactly.
        self._missing_cost = 4.0 * len(fractions) * float((self._deficits.sum(axis=1) ** 2).sum())
        self._min_gain = max(1e-9, ROUNDING * len(labels) ** 2)  # least gain of a move or a swap
        self.list_of_group = np.full(len(groups), NO_LIST)  # (G,)

    def assign_group(self, group: int) -> None:
        """Put a group that is in no list into the list where it leaves the least distance."""
        rows, counts = self._entries_of(group)
        # (lacking - counts)^2 - lacking^2, summed over the group's entries
        costs = (counts[:, None] * (counts[:, None] - 2 * self._deficits[rows])).sum(axis=0)
        self._put(group, int(costs.argmin()))

    def move_groups(self, order: Ints) -> bool:
        """Move each group to another list if that helps; returns whether any group moved."""
        costs, _, _ = self._changes(0, len(self.list_of_group))
        has_moved = False
        for group in order[costs[order].min(axis=1) < -self._min_gain]:
            (cost,), _, _ = self._changes(group, group + 1)  # computed after the earlier moves
            if cost.min() < -self._min_gain:
                self._put(group, int(cost.argmin()))
                has_moved = True
        return has_moved

    def swap_groups(self) -> bool:
        """Let groups of two lists change places while that helps; returns whether any groups did.

        Most often, each of two classes has one sample too many in the list where the other class lacks one.
        """
        has_swapped = False
        for here, there in itertools.permutations(range(self._deficits.shape[1]), 2):
            while (self.list_of_group == here).any():
                saved = self._deficits.copy(), self._num_groups.copy(), self.list_of_group.copy()
                distance = 0.0
                missing = 0
                for source, target in ((here, there), (there, here)):  # the cheapest group of each list
                    costs, changes, lost_classes = self._changes(0, len(self.list_of_group))
                    group = int(np.where(self.list_of_group == source, costs[:, target], np.inf).argmin())
                    distance += float(changes[group, target])
                    missing += int(lost_classes[group, target])
                    self._put(group, target)
                if missing > 0 or (missing == 0 and distance >= -self._min_gain):
                    self._deficits, self._num_groups, self.list_of_group = saved
                    break
                has_swapped = True
        return has_swapped

    def _entries_of(self, group: int) -> tuple[Ints, Ints]:
        """The rows and counts of one group."""
        entries = slice(self._starts[group], self._starts[group + 1])
        return self._rows[entries], self._counts[entries]

    def _changes(self, start: int, end: int) -> tuple[Floats, Floats, Ints]:
        """The costs (G, S) of moving groups to lists, and the changes (G, S) of distance and missing classes.

        The distance is positive for the list that a group is in.
        """
        first = self._starts[start : end + 1]
        entries = slice(first[0], first[-1])
        lists = np.repeat(self.list_of_group[start:end], np.diff(first))[:, None]  # (E, 1)
        rows, counts = self._rows[entries], self._counts[entries, None]
        lacking, present = self._deficits[rows], self._num_groups[rows]  # (E, S)
        changes = 2 * counts * (counts + np.take_along_axis(lacking, lists, axis=1) - lacking)
        is_last = np.take_along_axis(present, lists, axis=1) == 1  # (E, 1)
        missing = (is_last.astype(np.int64) - (present == 0)) * self._is_needed[rows][:, None]
        offsets = first[:-1] - first[0]
        distance, lost = np.add.reduceat(changes, offsets, axis=0), np.add.reduceat(missing, offsets, axis=0)
        return distance + self._missing_cost * lost, distance, lost

    def _put(self, group: int, target: int) -> None:
        """Move a group from its list, if it has one, to another list."""
        rows, counts = self._entries_of(group)
        for list_id, sign in ((int(self.list_of_group[group]), 1), (target, -1)):
            if list_id != NO_LIST:
                self._deficits[rows, list_id] += sign * counts
                self._num_groups[rows, list_id] -= sign
        self.list_of_group[group] = target
