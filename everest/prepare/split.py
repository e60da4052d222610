"""Divide a data set into lists: whole groups of videos, each class in the same shares, reproducible by seed.

everest.lists.groups forms the groups, everest.prepare.assignment chooses the list of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from everest.errors import DataError, RecipeError
from everest.lists.groups import GroupOf
from everest.lists.labels import Label, indices, read_class_names
from everest.lists.sample import Sample
from everest.lists.writing import names_readable, refuse_existing, refuse_unlistable, write_lines, write_list
from everest.prepare.assignment import NO_CLASS, assign
from everest.prepare.index import CLASSES

NAMES: Final = ("train", "val", "test")
BINS: Final = 10  # our choice: bins of numbers, each of which is divided like a class


def read_shares(text: str) -> dict[str, float]:
    """The shares of `80/10/10` (train, val, test) or `80/20` (train, test), which add up to one."""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    is_finite = sum(numbers) < float("inf")
    if len(numbers) not in (2, 3) or not (is_finite and all(number > 0 for number in numbers)):
        raise RecipeError(f"--shares {text}: give two (train/test) or three (train/val/test): 80/10/10")
    names = NAMES if len(numbers) == 3 else ("train", "test")
    return {name: number / sum(numbers) for name, number in zip(names, numbers, strict=True)}


def split_samples(
    samples: Sequence[Sample], shares: Mapping[str, float], *, group_of: GroupOf, seed: int
) -> dict[str, list[Sample]]:
    """Assign whole groups to lists, so that each list has its share of all samples and of every class.

    A sample counts for each of its classes. Samples of a multi-label list without a class count as a class,
    and numbers by the bin that they are in. The first of several labels is balanced. Samples keep their
    order. See `everest.prepare.assignment.assign`.
    """
    members: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        members.setdefault(group_of(sample), []).append(number)
    groups = [np.array(numbers) for numbers in members.values()]
    labels = [sample.labels[0] if sample.labels else 0 for sample in samples]
    classes = _classes_to_balance(labels, most_bins=int(len(groups) * min(shares.values())))
    chosen = assign(groups, classes, np.array(list(shares.values())), np.random.default_rng(seed))
    lists = {}
    for number, name in enumerate(shares):
        numbers = [groups[group] for group in np.flatnonzero(chosen == number)]
        lists[name] = [samples[index] for index in sorted(itertools.chain(*numbers))]
    return lists


def _classes_to_balance(labels: Sequence[Label], *, most_bins: int) -> list[tuple[int, ...]]:
    """The classes of each label; of numbers the bin, where all bins have the same share of the numbers.

    Args:
        most_bins: so few that the smallest list can have a group of each.
    """
    if not all(isinstance(label, float) for label in labels):
        return [indices(label) or (NO_CLASS,) for label in labels]
    numbers = np.array(labels)
    bins = max(1, min(BINS, most_bins))
    edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))  # equal numbers are in one bin
    return [(int(index),) for index in np.searchsorted(edges, numbers, side="right")]


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

    A `classes.txt` that has these names already is kept.

    Args:
        read: the files that were read.
    """
    paths = {name: folder / f"{name}.csv" for name, samples in lists.items() if samples}
    written = [*paths.values(), *([folder / CLASSES] if names else [])]
    has_classes = False  # whether `everest prepare index` wrote them
    with suppress(DataError):
        has_classes = bool(names) and read_class_names(folder / CLASSES) == tuple(names)
    refuse_existing(list(paths.values()) if has_classes else written, overwrite=overwrite, read=read)
    for old in (folder / f"{name}.csv" for name in NAMES if name not in paths):
        if old.exists():
            raise RecipeError(f"{old}: would remain from another split; remove it, or choose another folder")
    refuse_unlistable(sample for samples in lists.values() for sample in samples)
    for name, path in paths.items():
        write_list(path, lists[name], root=root, label_names=names_readable(names), heads=heads)
    if names and not has_classes:
        write_lines(folder / CLASSES, names)
    return written
