"""From what annotations name to the files: found by name, at any depth, whatever their suffix.

Lists from what the archives of a data set contain: recognised, matched with the files, written.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from everest.data.list_writing import names_needed, refuse_existing, unlistable, write_list, write_names
from everest.data.samples import Sample
from everest.errors import DataError
from everest.prepare.class_folders import folder_samples
from everest.prepare.layout import AnnotatedSample
from everest.prepare.layout_table import FOLDERS, expectations, find_layout
from everest.system.files import write_table
from everest.video.folders import VIDEO_SUFFIXES, videos_under


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Which entries have a file, and which do not."""

    lists: Mapping[str, Sequence[Sample]]
    missing: Sequence[tuple[str, str]]  # list, and the first name that its file may have
    extra: Sequence[Path]  # videos that no list names


def match(lists: Mapping[str, Sequence[AnnotatedSample]], videos: Sequence[Path]) -> Matched:
    """Give each entry its file. Of files of one name, that in the most of the entry's folders is taken."""
    files: dict[str, list[Path]] = {}
    for video in videos:
        files.setdefault(
            _key(video.stem if video.suffix.lower() in VIDEO_SUFFIXES else video.name), []
        ).append(video)
    found: dict[str, list[Sample]] = {name: [] for name in lists}
    missing = []
    for name, entries in lists.items():
        for entry in entries:
            sample = _sample(entry, files)
            if sample is None:
                missing.append((name, entry.places[0].name))
            else:
                found[name].append(sample)
    used = {sample.path for samples in found.values() for sample in samples}
    return Matched(lists=found, missing=missing, extra=[video for video in videos if str(video) not in used])


def _key(name: str) -> str:
    """macOS writes accents as signs of their own."""
    return unicodedata.normalize("NFC", name)


def _sample(entry: AnnotatedSample, files: Mapping[str, Sequence[Path]]) -> Sample | None:
    for place in entry.places:
        candidates = files.get(_key(place.name))
        if candidates:
            path = max(candidates, key=lambda file: len(entry.folders.intersection(file.parts)))
            return Sample(
                path=str(path),
                labels=entry.labels,
                start=place.start,
                end=place.end,
                start_frame=place.start_frame,
                end_frame=place.end_frame,
            )
    return None


CLASSES: Final = "classes.txt"
REPORT: Final = "index_report.csv"  # what is missing, superfluous or cannot be listed
UNLABELLED: Final = "-unlabelled"  # after the name of a list whose labels are kept secret


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder holds."""

    layout: str
    root: Path  # absolute
    lists: Mapping[str, Sequence[Sample]]
    class_names: tuple[str, ...] = ()
    heads: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Path] = ()  # the annotations
    missing: Sequence[tuple[str, str]] = ()  # list, name of the file
    extra: Sequence[Path] = ()  # videos in no list
    unlistable: Sequence[tuple[str, str]] = ()  # path, why

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


def read_index(folder: Path, *, annotations: Path | None, layout: str | None, split: int) -> Index:
    """Recognise what `folder` holds and find the videos of its lists.

    Args:
        annotations: where the annotations are, if not below `folder`.
        layout: its name; None takes what fits.
        split: which of the official splits, where there are several.
    Raises:
        DataError: nothing is recognised, annotations are wrong, or none of their videos is there.
        RecipeError: an unknown name, or several layouts fit.
    """
    for place in (folder, annotations or folder):
        if not place.is_dir():
            raise DataError(f"{place}: no such folder")
    root = folder.absolute()
    found = find_layout(annotations or folder, layout, split=split)
    if found is None:
        return _index_folders(root)
    known, sources = found
    told = known.read(sources)
    videos = list(videos_under(root))
    matched = match(told.lists, videos)
    if not any(matched.lists.values()):
        wanted = next((name for _, name in matched.missing), "any video")
        raise DataError(
            f"{folder}: annotations of {known.title}, and none of their {len(matched.missing)} videos (first "
            f"{wanted}) among the {len(videos)} below it; expected are {known.expects}"
        )
    lists, refused = _listable(matched.lists)
    return Index(
        layout=known.name,
        root=root,
        lists=_unlabelled_apart(lists),
        class_names=told.class_names,
        heads=told.heads,
        settings=told.settings,
        sources=[file for files in sources.values() for file in files],
        missing=matched.missing,
        extra=matched.extra,
        unlistable=refused,
    )


def _index_folders(root: Path) -> Index:
    found, names = folder_samples(root)
    if not found:
        raise DataError(f"{root}: no videos below it, or none of the known layouts:\n{expectations()}")
    used = {sample.path for samples in found.values() for sample in samples}
    lists, refused = _listable(found)
    extra = [video for video in videos_under(root) if str(video) not in used]
    return Index(layout=FOLDERS, root=root, lists=lists, class_names=names, extra=extra, unlistable=refused)


def _listable(
    lists: Mapping[str, Sequence[Sample]],
) -> tuple[dict[str, list[Sample]], list[tuple[str, str]]]:
    """The samples that a list can hold, and the paths of the others with the reason."""
    kept: dict[str, list[Sample]] = {name: [] for name in lists}
    refused: dict[str, str] = {}
    for name, samples in lists.items():
        for sample in samples:
            problem = unlistable(sample.path)
            if problem is None:
                kept[name].append(sample)
            else:
                refused[sample.path] = problem
    return {name: samples for name, samples in kept.items() if samples}, sorted(refused.items())


def _unlabelled_apart(lists: Mapping[str, Sequence[Sample]]) -> dict[str, Sequence[Sample]]:
    """Lists without labels serve pre-training only, which their names say."""
    return {
        name if any(sample.labels for sample in samples) else name + UNLABELLED: samples
        for name, samples in lists.items()
    }


def write_index(index: Index, folder: Path, *, overwrite: bool) -> list[Path]:
    """Write `NAME.csv` for each list, `classes.txt`, and `index_report.csv` where there is something to tell.

    Returns:
        The files written.
    Raises:
        RecipeError: one exists and may not be replaced, or is one of the annotations.
        EnvironmentProblem: one cannot be written.
    """
    paths = {name: folder / f"{name}.csv" for name in index.lists}
    classes = [folder / CLASSES] if index.class_names else []
    problems = _report_rows(index)
    report = [folder / REPORT] if problems else []
    written = [*paths.values(), *classes, *report]
    refuse_existing(written, overwrite=overwrite, read=index.sources)
    for name, samples in index.lists.items():
        write_list(
            paths[name],
            samples,
            root=index.root,
            label_names=names_needed(index.class_names),
            heads=list(index.heads),
        )
    for path in classes:
        write_names(path, index.class_names)
    for path in report:
        write_table(path, [("problem", "list", "video"), *problems])
    return written


def _report_rows(index: Index) -> list[tuple[str, str, str]]:
    missing = [("missing", name, video) for name, video in index.missing]
    extra = [("extra", "", os.path.relpath(video, index.root)) for video in index.extra]
    refused = [(problem, "", path) for path, problem in index.unlistable]
    return [*missing, *extra, *refused]


def recipe_lines(index: Index, folder: Path) -> dict[str, Any]:
    """The keys of a recipe's `data` that use the lists in `folder`; None is `null`."""
    below = os.path.relpath(folder.absolute(), index.root)
    names = {name: str(Path(below, f"{name}.csv")) for name in index.lists}
    labelled = {
        name: names[name] for name, samples in index.lists.items() if any(sample.labels for sample in samples)
    }
    train = labelled.get("train", labelled.get("all"))
    keys: dict[str, Any] = {
        "root": str(index.root),
        "train": train,
        "val": labelled.get("val"),
        # Where tests are secret, all report the validation set.
        "test": labelled.get("test", labelled.get("val")),
        "pretrain": next(iter(names.values())) if not labelled else None,
    }
    if index.class_names:
        keys |= {"classes": str(Path(below, CLASSES)), "num_classes": len(index.class_names)}
    if index.heads:
        keys["heads"] = dict(index.heads)
    return keys | dict(index.settings)
