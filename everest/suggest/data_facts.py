"""The properties of a data set from which a recipe is suggested: its lists, videos and classes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final

from everest.config.heads import Task
from everest.config.settings import DataSettings, Recipe
from everest.data.footage import footage_of
from everest.data.stages import finetune_clips, pretrain_clips
from everest.errors import DataError
from everest.lists.label_facts import count_classes, find_task, found_notice, imbalance
from everest.lists.labels import read_class_names
from everest.lists.sample import Sample
from everest.lists.shards import find_index, read_index
from everest.lists.stage import LIST_FILES, read_stage
from everest.lists.text import read_rows
from everest.prepare.index import CLASSES
from everest.suggest.choices import ProbeList, probe_list
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import as_data_error, holds_list, split_folders, subfolders, videos_under
from everest.video.reader import probe
from everest.video.stream import VideoError

MOST_PROBED: Final = 40  # videos whose length and size are read, spread over the list


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The properties of a data set on which the rules depend."""

    videos: int  # for training
    pretrain_videos: int = 0  # of `data.pretrain`; 0: the same as for training
    classes: int  # 0: the videos have no labels, or numbers
    class_names: tuple[str, ...] = ()  # empty: only the indices of the classes are known
    frames: float  # of the median video; at `data.fps`, if it is set
    pretrain_frames: float = 0.0  # the same of `data.pretrain`; 0: the same as for training
    height: float
    width: float
    task: Task = "single-label"
    imbalance: float = 1.0  # ratio of the most frequent class to the rarest that has a video
    probed: ProbeList


def examine_data(data: DataSettings, *, labeled: bool = True) -> DataFacts:
    """Count the training videos and classes, and read the length and size of some videos.

    Raises:
        DataError: a list cannot be read, or none of its videos.
    """
    recipe, classes, names, ratio = Recipe(name="suggest", data=data), 0, None, 1.0
    if labeled:
        clips, known = finetune_clips(recipe)
        classes = sum(head.outputs for head in known.heads if head.task != "regression")
        # Of the first label, which a sampler balances.
        counts = count_classes(sample.labels[0] for sample in clips.samples)
        names, ratio = known.names, imbalance(counts.values())
    else:
        clips = pretrain_clips(recipe)
    frames, height, width = _median_size(clips.samples, data.fps)
    more = pretrain_clips(recipe).samples if labeled and data.pretrain else ()
    return DataFacts(
        videos=len(clips),
        pretrain_videos=len(more),
        classes=classes,
        class_names=names or (),
        frames=frames,
        pretrain_frames=_median_size(more, data.fps)[0] if more else 0.0,
        height=height,
        width=width,
        task=data.task if labeled else "single-label",
        imbalance=ratio,
        probed=_probed(data, len(clips), labeled=labeled),
    )


def _probed(data: DataSettings, train_videos: int, *, labeled: bool) -> ProbeList:
    """The videos for probes; labels are checked when they are used."""
    val_videos, groups = 0, set()
    if data.val is not None:
        samples = read_stage(data, "val", labeled=False, may_miss=True).samples
        val_videos, groups = len(samples), {sample.group for sample in samples}
    one_source = len(groups) == 1 and groups != {None}  # no video is classified by another source
    has_classes = labeled and not data.heads and data.task == "single-label"
    return probe_list(
        train=data.train if has_classes else None,
        train_videos=train_videos,
        val=data.val if has_classes and not one_source else None,
        val_videos=val_videos,
    )


def with_task(section: dict[str, Any], task: Task | None) -> tuple[dict[str, Any], str | None]:
    """The section of a training list with `task`, and a notice if the task was found from its labels.

    Args:
        task: what a label is; None: as the labels show.
    Raises:
        DataError: the list or the file of class names cannot be read.
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
    found = find_task(rows, names=read_class_names(root / names) if names else ())
    return section if found == "single-label" else {**section, "task": found}, found_notice(train, found)


def _median_size(samples: Sequence[Sample], fps: float | None) -> tuple[float, float, float]:
    """The median frames, height and width of some of the videos or segments.

    Raises:
        DataError: none of them can be read.
    """
    found, problems = [], []
    for sample in samples[:: max(1, len(samples) // MOST_PROBED)]:
        try:
            info, frames = probe(sample.video), footage_of(sample, fps).num_frames
        except VideoError as error:
            problems.append(str(error))
        else:
            found.append((frames, info.height, info.width))
    if not found:
        raise DataError(f"none of the videos can be read; the first: {problems[0]}")
    frames, height, width = map(median, zip(*found, strict=True))
    return frames, height, width


def data_section(
    root: str,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    pretrain: str | None = None,
    labeled: bool = True,
) -> dict[str, Any]:
    """The lists of a data set: the given ones, else `train.csv`, `val.csv` and `test.csv`, or their folders.

    Given lists and folders are relative to `root` or to the working directory. The class names in
    `classes.txt` next to `train.csv` are used, too, or those in `X_classes.txt` next to `X_train.csv`.

    Args:
        pretrain: a list or folder of videos for pre-training; None: the ones of the training list.
        labeled: False lets the training list be missing: all videos below the folder are read then.
    Raises:
        DataError: there is no folder `root`, or no training list.
    """
    location = _folder(root)
    found: dict[str, Any] = {}
    for key, given in (("train", train), ("val", val), ("test", test)):
        found[key] = _given(location, key, given) if given else _find_list(location, key, labeled=labeled)
    if pretrain is not None:
        found["pretrain"] = _given(location, "pretrain", pretrain)
    if found["train"] in (None, "train"):
        folders = split_folders(location, labeled=labeled)
        found |= {key: name for key, name in folders.items() if found[key] is None}
    if found["train"] is None and labeled:
        fix = "`everest prepare split LIST` divides a list or a sheet; --unlabeled needs no classes"
        if lists := _named_lists(location):
            fix = f"--train {lists[0]} reads the list that is there; --val and --test name further lists"
        elif has_class_folders(root):
            command = f"everest recipes suggest {shlex.quote(root)} --output my.yaml"
            fix = f"`{command}` makes lists of its class folders, and a recipe"
        raise DataError(f"{root}: no {LIST_FILES['train']}; {fix}")
    if found["train"] is None:
        del found["train"]
    elif classes := _class_file(found["train"], location):
        found["classes"] = classes
    return {"root": str(location.resolve()), **found}


def _folder(root: str) -> Location:
    """The folder of the videos; DataError if there is none."""
    location = parse_location(root)
    with as_data_error(location):
        if location.is_dir():
            return location
        if not location.exists():
            raise DataError(f"{root}: no such folder")
    command = f"everest prepare split {shlex.quote(root)}"
    raise DataError(
        f"{root}: not a folder; name the folder of the videos. `{command}` makes lists of a sheet"
    )


def _given(root: Location, key: str, name: str) -> str:
    """The list or folder that an option names, relative to `root` or to the working directory."""
    if (root / name).exists():
        return name
    if Path(name).exists():
        return str(Path(name).absolute())
    raise DataError(f"--{key} {name}: no such list in {root} or here")


def _find_list(root: Location, key: str, *, labeled: bool) -> str | None:
    """`KEY.csv`, or a folder `KEY` of videos or shards."""
    if (root / LIST_FILES[key]).exists():
        return LIST_FILES[key]
    folder = root / key
    return key if folder.exists() and (holds_list(folder, labeled=labeled) or find_index(folder)) else None


def has_class_folders(root: str) -> bool:
    """Whether two subfolders of a folder have videos, and no list `train.csv` or `X_train.csv` is there."""
    location = _folder(root)
    if _find_list(location, "train", labeled=True) is not None or split_folders(location):
        return False
    if _named_lists(location):
        return False
    filled = (name for name in subfolders(location) if next(videos_under(location / name), None))
    return len(list(islice(filled, 2))) == 2


def _named_lists(location: Location) -> list[str]:
    """The training lists in a folder under names such as `X_train.csv`."""
    with as_data_error(location):
        names = (path.name for path in location.iterdir())
        return sorted(name for name in names if name.endswith(f"_{LIST_FILES['train']}"))


def _class_file(train: str, root: Location) -> str | None:
    """The file of class names next to a training list, if there is one: X_classes.txt for X_train.csv."""
    folder, _, file = train.rpartition("/")
    prefix = file.removesuffix(LIST_FILES["train"])
    if prefix == file:
        return None
    name = f"{folder}/{prefix}{CLASSES}" if folder else f"{prefix}{CLASSES}"
    return name if (root / name).is_file() else None
