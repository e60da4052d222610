"""The data section of a recipe: lists, class names and task; and the commands that train with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from everest.config.heads import Task
from everest.config.settings import DataSettings
from everest.errors import DataError, RecipeError
from everest.lists.columns import find_index, read_index, read_rows
from everest.lists.labels import infer_task, read_class_names, task_notice
from everest.lists.reading import read_unlabeled
from everest.lists.sources import LIST_FILES, find_list, read_source
from everest.lists.writing import CLASSES_FILE
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import as_data_error, split_folders, subfolders, videos_under


def make_data_section(
    root: str,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    pretrain: str | None = None,
    labeled: bool = True,
) -> dict[str, Any]:
    """The lists of a data set: as given, else `train.csv`, `val.csv` and `test.csv`, or their folders.

    With a training list of another name or folder, `X_train.csv` or `lists/train.csv`, the others are
    `X_val.csv` and `X_test.csv`, or `lists/val.csv` and `lists/test.csv`. Given lists and folders are
    relative to `root` or to the working directory. The file of class names is found likewise.

    Args:
        pretrain: a list or folder of videos for pre-training; None: those of the training list.
        labeled: False lets the training list be missing: all videos below the folder are read then.
    """
    location = _find_folder(root)
    folder = location.resolve()
    given = {"train": train, "val": val, "test": test} | ({} if pretrain is None else {"pretrain": pretrain})
    section: dict[str, Any] = {}
    for key, name in given.items():
        if name == "":
            raise RecipeError(f"--{key}: empty; name a list or a folder")
        section[key] = None if name is None else _find_list(location, name)
        if name is not None and section[key] is None:
            raise DataError(f"--{key} {name}: no such list in {root} or here")
    default = find_list(location, "train", labeled=labeled)
    listed = section["train"] = section["train"] or default
    if listed is None and labeled:
        fix = "`everest prepare split LIST` divides a list or a sheet; --unlabeled needs no classes"
        if lists := find_named_lists(root, "train"):
            fix = f"--train {lists[0]} reads the list that is there; --val and --test name further lists"
        elif has_class_folders(root):
            command = f"everest recipes suggest {shlex.quote(root)} --output my.yaml"
            fix = f"`{command}` makes lists of its class folders, and a recipe"
        raise DataError(f"{root}: no {LIST_FILES['train']}; {fix}")
    # Beside another training list, val.csv in `root` may have the labels of another task.
    is_default = listed is None or folder / listed == folder / (default or "")
    training_list = listed or ""
    prefix = training_list.removesuffix(LIST_FILES["train"])  # `X_` of X_train.csv, `lists/`, or nothing
    if prefix == training_list or prefix[-1:].isalnum():  # X.csv; strain.csv is not a list of `s`
        prefix = f"{training_list.removesuffix('.csv')}_"
    for key in ("val", "test"):
        if given[key] is None and is_default:
            section[key] = find_list(location, key, labeled=labeled)
        elif given[key] is None:
            section[key] = _find_list(location, f"{prefix}{LIST_FILES[key]}")
    if listed is None:
        del section["train"]
    elif (location / f"{prefix}{CLASSES_FILE}").is_file():
        section["classes"] = f"{prefix}{CLASSES_FILE}"
    return {"root": str(folder), **section}


def _find_folder(root: str) -> Location:
    """The folder of the videos; DataError if there is none."""
    location = parse_location(root)
    with as_data_error(location):
        if location.is_dir():
            return location
    raise DataError(
        f"{root}: no such folder; name the folder of the videos, and a list in it with --train. "
        "`everest prepare split SHEET` makes lists of a sheet"
    )


def _find_list(root: Location, name: str) -> str | None:
    """A list or folder, relative to `root` or to the working directory; None if there is none."""
    if (root / name).exists():
        return name
    return str(Path(name).absolute()) if Path(name).exists() else None


def has_class_folders(root: str) -> bool:
    """Whether two subfolders of a folder have videos, and no list `train.csv` or `X_train.csv` is there."""
    location = _find_folder(root)
    is_divided = find_list(location, "train", labeled=True) or split_folders(location)
    if is_divided or find_named_lists(root, "train"):
        return False
    filled = (name for name in subfolders(location) if next(videos_under(location / name), None))
    return len(list(islice(filled, 2))) == 2


def find_named_lists(root: str, key: str) -> list[str]:
    """The lists in a folder under names such as `X_train.csv`."""
    location = _find_folder(root)
    with as_data_error(location):
        return sorted(path.name for path in location.iterdir() if path.name.endswith(f"_{LIST_FILES[key]}"))


def with_task(section: dict[str, Any], task: Task | None) -> tuple[dict[str, Any], str | None]:
    """The section of a training list with `task`, and a notice if the task was inferred from its labels.

    Args:
        task: what a label is; None: as the labels show.
    """
    if task == "regression":
        return {key: value for key, value in section.items() if key != "classes"} | {"task": task}, None
    if task is not None:
        return section if task == "single-label" else {**section, "task": task}, None
    root, names = parse_location(section["root"]), section.get("classes")
    train = join_location(root, section["train"])
    with as_data_error(train):
        index = find_index(train)
        rows = read_index(index) if index else read_rows(train) if train.is_file() else []
    task = infer_task(rows, names=read_class_names(root / names) if names else ())
    return section if task == "single-label" else {**section, "task": task}, task_notice(train, task)


def find_shared_videos(data: DataSettings, key: str, lists: Iterable[str]) -> list[str]:
    """The videos of `data.KEY` that are also in other lists, sorted; a link counts as its target."""
    root = parse_location(data.root)
    others = [read_unlabeled(join_location(root, name), root=root, skip_missing=True) for name in lists]
    known = read_source(data, key, labeled=False, skip_missing=True)
    paths, *of_others = (
        {os.path.realpath(sample.path) for sample in listed.samples} for listed in (known, *others)
    )
    return sorted(paths & set().union(*of_others))
