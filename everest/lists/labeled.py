"""The list or folder of `everest prepare split` and `stats`, with the task that its labels show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from everest.config.heads import Task
from everest.errors import DataError, RecipeError
from everest.lists.class_folders import deeper_folders_notice, read_names, refuse_split_folders
from everest.lists.label_facts import empty_columns, find_task, found_notice, open_heads
from everest.lists.reading import SampleList, read_list, read_samples
from everest.video.folders import videos_by_subfolder


@dataclass(frozen=True, kw_only=True)
class LabeledList:
    """The samples of a list or folder, with labels if it has any."""

    data: SampleList  # with rows
    heads: list[str]  # names of the labels, if a sample has several
    task: Task  # of the first label
    notice: str | None = None  # about a task that the labels show, or folders inside class folders

    def without_labels(self, source: Path) -> str | None:
        """Returns a notice if a sheet has columns, but none that is known to hold the classes."""
        header = self.data.rows[0].header if self.data.rows else None
        if header is None or header.has_classes or not header.unassigned:
            return None
        columns = ", ".join(header.unassigned)
        return (
            f"{source}: no column is known to hold the classes ({columns}), so the lists have no labels; "
            "--class-column NAME names it"
        )


def read_labeled(
    source: Path,
    *,
    root: Path,
    classes: Path | None,
    class_column: str | None = None,
    task: Task | None = None,
    used_columns: Collection[str] = (),
) -> LabeledList:
    """Reads the samples of a list or a folder.

    Args:
        class_column: the column of classes in a sheet; None finds it by its name.
        task: what a label is; None: as the labels show.
        used_columns: further columns that the caller reads, as written.
    """
    rows = read_list(source, class_column)
    heads = open_heads(rows or [])
    names = read_names(classes) if classes else None
    if task == "regression" and names:
        raise RecipeError("--classes: has no effect with --task regression, whose labels are numbers")
    if rows is None:
        if class_column is not None:
            raise RecipeError(f"--class-column {class_column}: {source} is a folder, which has no columns")
        if task not in (None, "single-label"):
            raise RecipeError(
                f"--task {task}: {source} is a folder; its class folders give a video one class"
            )
        refuse_split_folders(source)
        labeled = any(videos_by_subfolder(source).values())
    else:
        has_label = any("label" in row.values for row in rows)
        if heads and has_label:
            raise DataError(f"{source}: has columns label and label.NAME; rename label to label.NAME, too")
        if heads and task is not None:
            raise RecipeError(f"--task {task}: is of a column label; {source} has columns label.NAME")
        header = rows[0].header
        is_unclear = header is not None and header.is_unclear
        labeled = bool(heads) or has_label or is_unclear or (task is not None and bool(empty_columns(rows)))
    found = task or find_task(rows or (), names=names or ())
    data = read_samples(
        source,
        root=root,
        classes=names,
        task=found,
        heads=heads,
        labeled=labeled,
        class_column=class_column,
        used_columns=used_columns,
    )
    notice = None if task else found_notice(source, found)
    if rows is None and labeled:
        notice = deeper_folders_notice(source.absolute(), data.samples, data.class_names or ())
    return LabeledList(
        data=replace(data, rows=rows),
        heads=[head.name for head in heads],
        task=heads[0].task if heads else found,
        notice=notice,
    )
