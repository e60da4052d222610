"""Lists from the archives of a data set: annotations are recognized and matched with the video files."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from everest.config.heads import MULTI_LABEL, Task
from everest.errors import DataError, RecipeError
from everest.lists.class_folders import deeper_folders_notice, folder_samples, join_copies
from everest.lists.sample import Sample
from everest.lists.writing import names_needed, refuse_existing, unlistable, write_lines, write_list
from everest.prepare.layout import EXPECTATIONS, FOLDERS, AnnotatedSample, find_layout
from everest.prepare.layout_readers import READERS
from everest.system.files import write_table
from everest.video.folders import VIDEO_SUFFIXES, loose_videos_notice, videos_under

CLASSES: Final = "classes.txt"
REPORT: Final = "index_report.csv"
UNLABELLED: Final = "-unlabelled"  # appended to the name of a list whose labels are secret


@dataclass(frozen=True, kw_only=True)
class Index:
    """The contents of a data set's folder."""

    layout: str
    root: Path  # absolute
    lists: Mapping[str, Sequence[Sample]]
    class_names: tuple[str, ...] = ()
    heads: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Path] = ()  # the annotation files
    missing: Sequence[tuple[str, str]] = ()  # list, and the preferred name of the file
    extra: Sequence[Path] = ()  # videos in no list
    unlistable: Sequence[tuple[str, str]] = ()  # path, and why no list can hold it
    notice: str | None = None  # about folders inside class folders, and videos next to them

    def to_dict(self) -> dict[str, Any]:
        """The counts, for people and scripts."""
        return {
            "layout": self.layout,
            "lists": {name: len(samples) for name, samples in self.lists.items()},
            "classes": len(self.class_names) or None,
            "missing": len(self.missing),
            "extra": len(self.extra),
            "unlistable": len(self.unlistable),
        }


def index_folder(
    folder: Path, *, annotations: Path | None, layout: str | None, split: int, task: Task | None = None
) -> Index:
    """Recognize the data set in a folder and find the videos of its lists.

    Args:
        annotations: the folder of the annotations, if it is not inside `folder`.
        layout: its name; None takes the layout that fits.
        split: the number of the official split, if there are several.
        task: multi-label joins the classes of a video that is in several class folders.
    """
    for searched in (folder, annotations or folder):
        if not searched.is_dir():
            raise DataError(f"{searched}: no such folder")
    root = folder.absolute()
    known, sources = find_layout(annotations or folder, layout, split=split) or (None, {})
    if known is not None and task not in (None, "single-label"):
        raise RecipeError(f"--task {task}: goes with class folders, not with annotations of {known.title}")
    if task == "regression":
        raise RecipeError(
            f"--task regression: the folders of {folder} give classes; `everest prepare split LIST` reads "
            "numbers"
        )
    videos = list(videos_under(root))
    missing: list[tuple[str, str]] = []
    settings: dict[str, Any] = {}
    found = None
    if known is None:
        lists, names = folder_samples(root)
        if not lists:
            raise DataError(f"{root}: no videos below it, or none of the known layouts:\n{EXPECTATIONS}")
        if names:
            deeper = deeper_folders_notice(root, itertools.chain(*lists.values()), names)
            found = "\n".join(filter(None, (loose_videos_notice(root), deeper))) or None
    else:
        published = READERS[known.name](sources)
        names, settings = published.class_names, {**known.settings, **published.settings}
        lists, missing = match_files(published.lists, videos)
        if not any(lists.values()):
            wanted = next((name for _, name in missing), "any video")
            raise DataError(
                f"{folder}: annotations of {known.title}, and none of their {len(missing)} videos (first "
                f"{wanted}) among the {len(videos)} below it; expected are {known.expects}"
            )
    used = {sample.path for samples in lists.values() for sample in samples}
    if task == MULTI_LABEL and names:
        lists = {name: join_copies(samples) for name, samples in lists.items()}
        settings["task"] = task
    refused = {path: problem for path in used if (problem := unlistable(path)) is not None}
    return Index(
        layout=known.name if known else FOLDERS,
        root=root,
        lists=_listable(lists, refused, is_annotated=known is not None),
        class_names=names,
        heads=known.heads if known else {},
        settings=settings,
        sources=[file for files in sources.values() for file in files],
        missing=missing,
        extra=[video for video in videos if str(video) not in used],
        unlistable=sorted(refused.items()),
        notice=found,
    )


def _listable(
    lists: Mapping[str, Sequence[Sample]], refused: Mapping[str, str], *, is_annotated: bool
) -> dict[str, list[Sample]]:
    """The lists without the refused paths, by their names; lists without samples are left out.

    Lists from annotations in which no sample has a label are for pre-training only, which their names show.
    """
    listed: dict[str, list[Sample]] = {}
    for name, samples in lists.items():
        kept = [sample for sample in samples if sample.path not in refused]
        if kept:
            unlabelled = is_annotated and not any(sample.labels for sample in kept)
            listed[name + UNLABELLED if unlabelled else name] = kept
    if not listed:
        path, problem = min(refused.items())
        raise DataError(f"{path!r}: {problem}, which no list can hold, as with all {len(refused)} videos")
    return listed


def match_files(
    lists: Mapping[str, Sequence[AnnotatedSample]], videos: Sequence[Path]
) -> tuple[dict[str, list[Sample]], list[tuple[str, str]]]:
    """Find the file of each annotated sample by its name, at any depth and whatever its suffix.

    Among files of one name, the file in the most of the sample's folders is taken.

    Returns:
        The samples with files, and the list and preferred file name of each sample without.
    """

    def key_of(name: str) -> str:
        return unicodedata.normalize("NFC", name)  # macOS writes accents as separate characters

    files: dict[str, list[Path]] = {}
    for video in videos:
        name = video.stem if video.suffix.lower() in VIDEO_SUFFIXES else video.name
        files.setdefault(key_of(name), []).append(video)
    matched: dict[str, list[Sample]] = {name: [] for name in lists}
    missing = []
    for name, annotated in lists.items():
        for sample in annotated:
            ref = next((ref for ref in sample.refs if key_of(ref.name) in files), None)
            if ref is None:
                missing.append((name, sample.refs[0].name))
                continue
            candidates = files[key_of(ref.name)]
            path = max(candidates, key=lambda file, near=sample.folders: len(near.intersection(file.parts)))
            segment = {key: value for key, value in ref._asdict().items() if key != "name"}
            matched[name].append(Sample(path=str(path), labels=sample.labels, **segment))
    return matched, missing


def write_index(index: Index, folder: Path, *, overwrite: bool) -> list[Path]:
    """Write `NAME.csv` for each list, `classes.txt`, and `index_report.csv` if there are problems.

    Returns:
        The files written.
    """
    paths = {name: folder / f"{name}.csv" for name in index.lists}
    problems = [
        *(("missing", name, video) for name, video in index.missing),
        *(("extra", "", os.path.relpath(video, index.root)) for video in index.extra),
        *((problem, "", path) for path, problem in index.unlistable),
    ]
    written = list(paths.values())
    written += [folder / CLASSES] if index.class_names else []
    written += [folder / REPORT] if problems else []
    refuse_existing(written, overwrite=overwrite, read=index.sources)
    for name, samples in index.lists.items():
        write_list(
            paths[name],
            samples,
            root=index.root,
            label_names=names_needed(index.class_names),
            heads=list(index.heads),
        )
    if index.class_names:
        write_lines(folder / CLASSES, index.class_names)
    if problems:
        write_table(folder / REPORT, [("problem", "list", "video"), *problems])
    return written


def recipe_lines(index: Index, folder: Path) -> dict[str, Any]:
    """The keys of a recipe's `data` that use the lists in `folder`; None is `null`."""
    below = os.path.relpath(folder.absolute(), index.root)
    names = {name: str(Path(below, f"{name}.csv")) for name in index.lists}
    labeled = {
        name: names[name] for name, samples in index.lists.items() if any(sample.labels for sample in samples)
    }
    train = labeled.get("train", labeled.get("all"))
    keys: dict[str, Any] = {
        "root": str(index.root),
        "train": train,
        "val": labeled.get("val"),
        # If test labels are secret, publications report the validation set.
        "test": labeled.get("test", labeled.get("val")),
        "pretrain": next(iter(names.values())) if not labeled else None,
    }
    if index.class_names:
        keys |= {"classes": str(Path(below, CLASSES)), "num_classes": len(index.class_names)}
    if index.heads:
        keys["heads"] = dict(index.heads)
    return keys | dict(index.settings)
