"""Groups of videos that must not be torn apart: of one source, one person, one scene.

Clips of one film look alike; with some of them in training and others in a test, the test measures memory.

Cut a data set into lists: whole groups, each class in the same shares, the same cut for the same seed.

S lists, C classes, G groups.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from everest.data.samples import Sample
from everest.errors import DataError, RecipeError
from everest.prepare.index import CLASSES

FOLDER: Final = "folder"

GroupOf = Callable[[Sample], str]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A group with videos in several lists."""

    group: str
    lists: Mapping[str, int]  # its samples in each


def grouping(text: str | None) -> GroupOf:
    """What `--group` means: each video for itself, by its folder, or by a regular expression with a group.

    Raises:
        RecipeError: no regular expression, or one without exactly one group.
    """
    if text is None:
        return _video_of
    if text == FOLDER:
        return lambda sample: str(Path(sample.path).parent)
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise RecipeError(f"--group {text}: neither '{FOLDER}' nor a regular expression ({error})") from error
    if pattern.groups != 1:
        raise RecipeError(
            f"--group {text}: one pair of parentheses has to mark what names the group, as in _g(\\d+)_"
        )

    def group_of(sample: Sample) -> str:
        found = pattern.search(Path(sample.path).name)
        if found is None or found.group(1) is None:
            raise DataError(f"{sample.path}: --group {text} does not fit its name")
        return found.group(1)

    return group_of


def _video_of(sample: Sample) -> str:
    """One name for a video, however its path is spelled and whatever links lead to it."""
    place = sample.video
    return os.path.realpath(place) if isinstance(place, Path) else sample.path


def find_leaks(lists: Mapping[str, Sequence[Sample]], group_of: GroupOf) -> list[Leak]:
    """The groups with samples in several lists, in the order of their names."""
    found: dict[str, dict[str, int]] = {}
    for name, samples in lists.items():
        for sample in samples:
            counts = found.setdefault(group_of(sample), {})
            counts[name] = counts.get(name, 0) + 1
    return [Leak(group=group, lists=counts) for group, counts in sorted(found.items()) if len(counts) > 1]


NAMES: Final = ("train", "val", "test")
ROUNDING: Final = 1e-14  # of squared numbers of samples: a move or an exchange that gains less gains nothing

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
    single groups are moved, and pairs exchanged, as long as that helps. Samples keep their order. Of several
    labels the first is balanced.
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


@dataclass(frozen=True)
class _Groups:
    """How many samples of which class each group holds, the groups' entries laid end to end (E,).

    An entry's row is that of its class in a table (C + 1, S); the last entry of each group counts all its
    samples, in the table's last row.
    """

    rows: Ints  # (E,)
    many: Ints  # (E,)
    first: Ints  # (G + 1,) where each group's entries begin

    def of(self, group: int) -> tuple[Ints, Ints]:
        """The rows and the numbers of one group."""
        entries = slice(self.first[group], self.first[group + 1])
        return self.rows[entries], self.many[entries]


def _count(groups: Sequence[Ints], places: Ints, classes: int) -> _Groups:
    counts = [np.unique(places[group], return_counts=True) for group in groups]
    return _Groups(
        rows=np.concatenate([np.append(which, classes) for which, _ in counts]),
        many=np.concatenate([np.append(many, many.sum()) for _, many in counts]),
        first=np.cumsum([0, *(len(which) + 1 for which, _ in counts)]),
    )


def assign(groups: Sequence[Ints], labels: Ints, shares: Floats, rng: np.random.Generator) -> Ints:
    """The list of every group (G,).

    Args:
        groups: the samples of each.
        labels: (samples,) from 0.
        shares: (S,) that add up to one.
    """
    classes, places = np.unique(labels, return_inverse=True)
    counted = _count(groups, places, len(classes))
    # What each list still lacks (C + 1, S); the last row counts all classes together.
    wanted = np.append(np.bincount(places, minlength=len(classes)), len(labels))
    lacking = wanted[:, None] * shares
    order = rng.permutation(len(groups))
    order = order[np.argsort([-len(groups[group]) for group in order], kind="stable")]
    chosen = np.zeros(len(groups), dtype=np.int64)
    for group in order:
        rows, many = counted.of(group)
        chosen[group] = _costs(lacking, rows, many).argmin()
        lacking[rows, chosen[group]] -= many
    least = max(1e-9, ROUNDING * len(labels) ** 2)
    while True:  # ends, as the distance falls every time
        helpful = order[_changes(lacking, chosen, counted)[order].min(axis=1) < -least]
        moved = [_move(lacking, chosen, group, *counted.of(group), least=least) for group in helpful]
        if not any(moved) and not _exchange(lacking, chosen, counted, least=least):
            return chosen


def _costs(lacking: Floats, rows: Ints, many: Ints) -> Floats:
    """(S,) how much a group in each list adds to the distance: (lacking - many)^2 - lacking^2, all rows."""
    return (many[:, None] * (many[:, None] - 2 * lacking[rows])).sum(axis=0)


def _changes(lacking: Floats, chosen: Ints, groups: _Groups) -> Floats:
    """(G, S) how much moving a group to each list adds to the distance; more than 0 for its own list."""
    many, lists = groups.many[:, None], np.repeat(chosen, np.diff(groups.first))[:, None]  # (E, 1) each
    lacked = lacking[groups.rows]  # (E, S)
    changes = 2 * many * (many + np.take_along_axis(lacked, lists, axis=1) - lacked)
    return np.add.reduceat(changes, groups.first[:-1], axis=0)


def _move(lacking: Floats, chosen: Ints, group: int, rows: Ints, many: Ints, *, least: float) -> bool:
    """Put a group where it fits best now; tells whether that is another list, which gains `least` or more."""
    before = int(chosen[group])
    lacking[rows, before] += many
    costs = _costs(lacking, rows, many)
    best = int(costs.argmin())
    if costs[best] > costs[before] - least:
        best = before
    lacking[rows, best] -= many
    chosen[group] = best
    return best != before


def _exchange(lacking: Floats, chosen: Ints, groups: _Groups, *, least: float) -> bool:
    """For each two lists, as long as both together help: move the group that costs least from one to the
    other, and then the best answer back; tells whether any did.

    For where no single move helps. Most often two classes are in each other's way then: each has one too many
    where the other lacks one.
    """
    exchanged = False
    for here, there in itertools.permutations(range(lacking.shape[1]), 2):
        while True:
            moved, answer = lacking.copy(), chosen.copy()
            change = _send_cheapest(moved, answer, groups, here, there)
            change += _send_cheapest(moved, answer, groups, there, here)
            if change > -least:
                break
            lacking[:], chosen[:] = moved, answer
            exchanged = True
    return exchanged


def _send_cheapest(lacking: Floats, chosen: Ints, groups: _Groups, here: int, there: int) -> float:
    """Move the group that adds least to the distance, and return how much; infinity without any group."""
    changes = np.where(chosen == here, _changes(lacking, chosen, groups)[:, there], np.inf)  # (G,)
    best = int(changes.argmin())
    rows, many = groups.of(best)
    lacking[rows, here] += many
    lacking[rows, there] -= many
    chosen[best] = there
    return float(changes[best])


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
        RecipeError: one exists and may not be replaced, or is the list that was cut; one of another split
            would stay beside these.
        EnvironmentProblem: one cannot be written.
    """
    paths = {name: folder / f"{name}.csv" for name, samples in lists.items() if samples}
    written = [*paths.values(), *([folder / CLASSES] if names else [])]
    refuse_existing(written, overwrite=overwrite, read=[source])
    for left in (folder / f"{name}.csv" for name in NAMES if name not in paths):
        if left.exists():
            raise RecipeError(f"{left}: would stay beside this split; remove it, or choose another folder")
    refuse_unlistable(sample for samples in lists.values() for sample in samples)
    for name, path in paths.items():
        write_list(path, lists[name], root=root, label_names=names_needed(names), heads=heads)
    if names:
        write_names(folder / CLASSES, names)
    return written
