"""Lists for training, validation and test from class folders, a list or windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everest.config.heads import Task
from everest.lists.labels import read_class_names
from everest.lists.reading import read_labeled
from everest.lists.sample import Sample
from everest.prepare.split import (
    COLUMN,
    group_of,
    refuse_two_groups,
    split_samples,
    with_groups,
    write_split,
)

SHARES: Final = {"train": 0.7, "val": 0.15, "test": 0.15}  # our choice: enough to test on in small sets
UNGROUPED: Final = (
    "without --group, clips of one recording, person or scene may be in several lists, and the test would "
    r"reward memorizing them. If files are named like anna_03.mp4, --group '(\w+)_\d+' keeps those of anna "
    "together"
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
        class_column: str | None = None,
        task: Task | None = None,
        classes: Path | None = None,
    ) -> LabeledVideos:
        """Read a folder of class folders, or a list.

        Args:
            group: as `--group` of `everest prepare split`; None: the column `group` of a list, if it has one.
            class_column: of a sheet; None finds it by its name.
            classes: the file of class names.
        """
        data = read_labeled(
            source,
            root=root,
            classes=read_class_names(classes) if classes else None,
            task=task,
            class_column=class_column,
            group_column=group.removeprefix(COLUMN) if group and group.startswith(COLUMN) else None,
        )
        samples, notices = data.samples, [data.notice]
        if group is not None:
            samples = with_groups(samples, group, root=root)
        elif all(sample.group is None for sample in samples):
            notices.append(UNGROUPED)
        refuse_two_groups(samples)
        return cls(
            source=source,
            root=root,
            samples=samples,
            names=data.class_names or (),
            heads=[head.name for head in data.heads if head.name],
            task=data.task,
            notices=[text for text in notices if text is not None],
        )

    @property
    def groups(self) -> set[str]:
        """The groups that stay together; a video without one is a group of its own."""
        return set(map(group_of, self.samples))

    def split(self, shares: Mapping[str, float] = SHARES, *, seed: int = 0) -> dict[str, list[Sample]]:
        """Whole groups in lists that have these shares of each class; see `split_samples`."""
        return split_samples(self.samples, shares, seed=seed)

    def write(
        self, lists: Mapping[str, Sequence[Sample]], folder: Path, *, overwrite: bool = True
    ) -> dict[str, str]:
        """Write the lists that have a sample, and `classes.txt`; returns the path of each list."""
        write_split(
            lists,
            folder,
            root=self.root,
            names=self.names,
            heads=self.heads,
            read=[self.source],
            overwrite=overwrite,
        )
        return {name: str(folder / f"{name}.csv") for name, samples in lists.items() if samples}
