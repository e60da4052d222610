"""Lists for training, validation and test from class folders, a list or windows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.config.heads import Task
from everest.lists.groups import COLUMN, FOLDER, grouping, with_groups
from everest.lists.labeled import read_labeled
from everest.lists.sample import Sample
from everest.prepare.split import split_samples, write_split

SHARES: Final = {"train": 0.7, "val": 0.15, "test": 0.15}  # our choice: enough to test on in small sets
UNGROUPED: Final = (
    "without --group, clips of one recording, person or scene may be in several lists, and the test would "
    r"measure memory. If files are named like anna_03.mp4, --group '(\w+)_\d+' keeps those of anna together"
)


@dataclass(frozen=True, kw_only=True)
class LabeledVideos:
    """The labeled videos of a folder or list, which can be divided into lists."""

    source: Path
    root: Path  # that the paths of lists are relative to
    samples: Sequence[Sample]  # with their groups, where these are known
    names: Sequence[str]  # of the classes; empty if labels are indices or numbers
    heads: Sequence[str]
    task: Task
    notices: Sequence[str]

    @classmethod
    def read(
        cls,
        source: Path,
        *,
        root: Path,
        group: str | None,
        task: Task | None = None,
        classes: Path | None = None,
    ) -> LabeledVideos:
        """Read a folder of class folders, or a list.

        Args:
            group: as `--group` of `everest prepare split`; None: the column `group` of a list, if it has one.
            classes: the file of class names.
        """
        column = group.removeprefix(COLUMN) if group is not None and group.startswith(COLUMN) else None
        used = () if column is None else (column,)
        labeled = read_labeled(source, root=root, classes=classes, task=task, used_columns=used)
        samples, notices = labeled.data.samples, [labeled.data.notice, labeled.notice]
        notices.append(labeled.without_labels(source))
        if group is not None:
            group_of = grouping(group, root=root, lists={source: labeled.data})
            samples = with_groups(samples, group_of, base=root if group == FOLDER else None)
        elif all(sample.group is None for sample in samples):
            notices.append(UNGROUPED)
        return cls(
            source=source,
            root=root,
            samples=samples,
            names=labeled.data.class_names or (),
            heads=labeled.heads,
            task=labeled.task,
            notices=[text for text in notices if text is not None],
        )

    @property
    def groups(self) -> set[str]:
        """The names of the groups."""
        return set(map(group_of, self.samples))

    def split(self, shares: Mapping[str, float] = SHARES) -> dict[str, list[Sample]]:
        """Whole groups in lists that have these shares of each class; see `split_samples`."""
        return split_samples(self.samples, shares, group_of=group_of, seed=0)

    def write(self, lists: Mapping[str, Sequence[Sample]], folder: Path) -> dict[str, str]:
        """Write the lists that have a sample, and `classes.txt`; returns the path of each list."""
        write_split(
            lists,
            folder,
            root=self.root,
            names=self.names,
            heads=self.heads,
            read=[self.source],
            overwrite=True,
        )
        return {name: str(folder / f"{name}.csv") for name, samples in lists.items() if samples}


def group_of(sample: Sample) -> str:
    """The group of a sample, else its file, whatever links lead to it."""
    if sample.group is not None:
        return sample.group
    return os.path.realpath(sample.video) if isinstance(sample.video, Path) else sample.path
