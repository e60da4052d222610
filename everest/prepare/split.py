"""Divides a data set into lists of whole groups, each class in the same fractions, reproducibly by seed.

Clips of one recording, person or scene look alike. If some of them are in training and others in a test set,
the test measures memory. So a group stays in one list, which everest.prepare.assignment chooses.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from everest.config.heads import Task
from everest.errors import DataError, RecipeError
from everest.lists.columns import GROUP_COLUMN
from everest.lists.groups import COLUMN_PREFIX, find_group, set_groups
from everest.lists.labels import class_indices, is_number_like, read_class_names
from everest.lists.reading import read_labeled
from everest.lists.sample import Sample
from everest.lists.sources import LIST_FILES
from everest.lists.writing import (
    CLASSES_FILE,
    names_to_write,
    refuse_existing,
    refuse_unlistable,
    write_lines,
    write_list,
)
from everest.prepare.assignment import NO_CLASS, assign_to_lists

LIST_NAMES: Final = tuple(LIST_FILES)
NUMBER_BINS: Final = 10  # heuristic: bins of numbers, each of which is divided like a class
DEFAULT_FRACTIONS: Final = {
    "train": 0.7,
    "val": 0.15,
    "test": 0.15,
}  # heuristic: enough to test on small sets
UNGROUPED_NOTICE: Final = (
    "without --group, clips of one recording, person or scene may be in several lists, and the test would "
    r"reward memorizing them. If files are named like anna_03.mp4, --group '^([^\W_]+)' keeps all videos of "
    "anna together"
)


@dataclass(frozen=True, kw_only=True)
class LabeledVideos:
    """The labeled videos of a folder or list, to be divided into lists."""

    source: Path
    root: Path  # folder that the paths in lists are relative to
    samples: Sequence[Sample]  # samples, with their groups where known
    class_names: Sequence[str]  # class names; empty if labels are indices or numbers
    head_names: Sequence[str]
    task: Task
    notices: Sequence[str]

    @classmethod
    def read(
        cls,
        source: Path,
        *,
        root: Path,
        group: str | None,
        class_column: str | None = None,
        task: Task | None = None,
        classes: Path | None = None,
    ) -> LabeledVideos:
        """Read a folder of class folders, or a list.

        Args:
            group: `--group` of `everest prepare split`: as `set_groups`, or `column:NAME` for a column of a
                list; None: its column `group`, if it has one.
            class_column: the column of a sheet that holds the classes; None finds it by its name.
            classes: the file of class names.
        Raises:
            DataError, RecipeError: as `read_labeled` and `set_groups`; a sample without a group or with two.
        """
        column = group.removeprefix(COLUMN_PREFIX) if group and group.startswith(COLUMN_PREFIX) else None
        chosen = {"label": class_column, GROUP_COLUMN: column}
        data = read_labeled(
            source,
            root=root,
            class_names=read_class_names(classes) if classes else None,
            task=task,
            columns={role: name for role, name in chosen.items() if name is not None},
        )
        samples = data.samples
        notices = list(data.notices)
        if column is not None:
            for sample in samples:
                if sample.group is None:
                    raise DataError(f"{sample.video_id}: no group in the column '{column}'; fill it in")
        elif group is not None:
            samples = set_groups(samples, group, root=root)
        elif all(sample.group is None for sample in samples):
            notices.append(UNGROUPED_NOTICE)
        groups_of_videos: dict[str, str | None] = {}
        for sample in samples:
            first = groups_of_videos.setdefault(sample.video_id, sample.group)
            if first != sample.group:
                groups = f"'{first or ''}' and '{sample.group or ''}'"
                raise DataError(f"{sample.video_id}: is in the groups {groups}; keep one")
        return cls(
            source=source,
            root=root,
            samples=samples,
            class_names=data.class_names or (),
            head_names=[head.name for head in data.heads if head.name],
            task=data.task,
            notices=notices,
        )

    @property
    def groups(self) -> set[str]:
        """The groups of the samples; a video without a group forms one."""
        return set(map(find_group, self.samples))

    def split(
        self, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
    ) -> dict[str, list[Sample]]:
        """Divide the samples into lists with these fractions; see `split_samples`."""
        return split_samples(self.samples, fractions, seed=seed)

    def write(
        self,
        lists: Mapping[str, Sequence[Sample]],
        folder: Path,
        *,
        overwrite: bool = True,
        full_paths: bool = False,
    ) -> dict[str, str]:
        """Write the lists that have a sample, and `classes.txt`; returns the path of each list.

        A `classes.txt` that has these names already is kept. RecipeError for a list that may not be replaced.

        Args:
            full_paths: write no path relative to `root`.
        """
        paths = {name: folder / f"{name}.csv" for name, samples in lists.items() if samples}
        written = list(paths.values())
        class_file = folder / CLASSES_FILE
        names = self.class_names
        has_classes = False  # whether the file already has these names, as after `prepare index`
        with suppress(DataError):
            has_classes = bool(names) and read_class_names(class_file) == tuple(names)
        if names and not has_classes:
            written.append(class_file)
        refuse_existing(written, overwrite=overwrite, inputs=[self.source])
        for stale in (folder / f"{name}.csv" for name in LIST_NAMES if name not in paths):
            if stale.exists():
                raise RecipeError(
                    f"{stale}: would remain from another split; remove it, or choose another folder"
                )
        refuse_unlistable(sample for samples in lists.values() for sample in samples)
        # If a name is a decimal, labels are indices: they would be read as numbers.
        class_names = names_to_write(names) if any(map(is_number_like, names)) else names
        root = None if full_paths else self.root
        for name, path in paths.items():
            write_list(path, lists[name], root=root, class_names=class_names, head_names=self.head_names)
        if class_file in written:
            write_lines(class_file, names)
        return {name: str(path) for name, path in paths.items()}


def read_fractions(text: str) -> dict[str, float]:
    """Shares that add up to one, of `70/15/15` (train, val, test) or `80/20`; RecipeError for other texts."""
    numbers: list[float] = []
    with suppress(ValueError):
        numbers = [float(part) for part in text.split("/")]
    is_finite = sum(numbers) < float("inf")
    if len(numbers) not in (2, 3) or not (is_finite and all(number > 0 for number in numbers)):
        raise RecipeError(f"--shares {text}: give two (train/test) or three (train/val/test): 70/15/15")
    names = LIST_NAMES if len(numbers) == 3 else ("train", "test")
    return {name: number / sum(numbers) for name, number in zip(names, numbers, strict=True)}


def split_samples(
    samples: Sequence[Sample], fractions: Mapping[str, float], *, seed: int
) -> dict[str, list[Sample]]:
    """Assign whole groups to lists, so that each list has its fraction of all samples and of every class.

    A sample counts for each of its classes. Multi-label samples without a class count as a class of their
    own, and numbers count by their bin. If samples have several labels, the first is balanced. Samples keep
    their order.
    """
    by_group: dict[str, list[int]] = {}
    for list_index, sample in enumerate(samples):
        by_group.setdefault(find_group(sample), []).append(list_index)
    members = [np.array(indices) for indices in by_group.values()]
    labels = [sample.labels[0] if sample.labels else 0 for sample in samples]
    classes = [class_indices(label) or (NO_CLASS,) for label in labels]
    if all(isinstance(label, float) for label in labels):
        # So few bins that the smallest list can have a group of each; each bin has the same fraction of
        # numbers.
        bins = max(1, min(NUMBER_BINS, int(len(members) * min(fractions.values()))))
        edges = np.unique(np.quantile(labels, np.arange(1, bins) / bins))  # equal numbers are in one bin
        classes = [(int(index),) for index in np.searchsorted(edges, labels, side="right")]
    chosen = assign_to_lists(
        members, classes, np.array(list(fractions.values())), np.random.default_rng(seed)
    )
    lists = {}
    for list_index, name in enumerate(fractions):
        indices = [members[group] for group in np.flatnonzero(chosen == list_index)]
        lists[name] = [samples[index] for index in sorted(itertools.chain(*indices))]
    return lists
