"""Class names, and lists from class folders (perhaps in a folder for each split) or from loose videos."""

from __future__ import annotations

import filecmp
import shlex
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from everest.errors import DataError, first_names
from everest.lists.labels import indices, read_class_names
from everest.lists.sample import Sample
from everest.system.storage import Location
from everest.video.folders import split_folders, videos_by_subfolder, videos_under


def folder_samples(root: Path) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """The samples of each list, and the sorted class names, which are empty without class folders.

    `train`, `val` and `test` with class folders in them give a list each, without the videos of folders next
    to them; class folders, or videos alone, give `all`, to be divided by `everest prepare split`.
    """
    splits = split_folders(root)
    folders = {key: root / name for key, name in splits.items()} if splits else {"all": root}
    by_list = {key: videos_by_subfolder(folder) for key, folder in folders.items()}
    classes = {name for folders in by_list.values() for name in folders}
    filled = {name for folders in by_list.values() for name, videos in folders.items() if videos}
    if not filled:
        samples = [Sample(path=str(video.absolute())) for video in videos_under(root)]
        return ({"all": samples} if samples else {}), ()
    names = sorted(classes)
    for first, second, difference in alike_names(names):
        raise DataError(
            f"{root}: the classes '{first}' and '{second}' differ in {difference} only; rename or merge them"
        )
    empty = sorted(classes - filled)
    if empty:
        shown = first_names([f"'{name}'" for name in empty])
        raise DataError(f"{root}: no videos in the class folders {shown}; remove them, or put the videos in")
    label_of = {name: label for label, name in enumerate(names)}
    lists = {
        list_name: [
            Sample(path=str(video.absolute()), labels=(label_of[name],))
            for name, videos in folders.items()
            for video in videos
        ]
        for list_name, folders in by_list.items()
    }
    return lists, tuple(names)


def refuse_split_folders(folder: Location) -> None:
    """Raise DataError if a folder has subfolders named train, val or test, which are no classes."""
    splits = split_folders(folder)
    if splits:
        raise DataError(
            f"{folder}: its folders {', '.join(sorted(splits.values()))} are lists, not classes; `everest "
            f"prepare index {shlex.quote(str(folder))}` writes these lists"
        )


def deeper_folders_notice(root: Path, samples: Iterable[Sample], names: Collection[str]) -> str | None:
    """A line about folders of videos inside the class folders (`names`), which may be meant as classes."""
    deeper: dict[str, Path] = {}  # with the class folder
    for sample in samples:
        parts = Path(sample.path).relative_to(root).parent.parts
        first = 2 if parts and parts[0] not in names else 1  # after the folder of the class
        if len(parts) > first:
            deeper["/".join(parts[: first + 1])] = root.joinpath(*parts[:first])
    if not deeper:
        return None
    some = sorted(deeper)
    one = shlex.quote(str(deeper[some[0]]))
    return (
        f"{root}: deeper folders are no classes of their own ({first_names(some)}); to make them classes, "
        f"move them into {root}, or name one class folder only: `everest prepare index {one}`"
    )


def join_copies(samples: Iterable[Sample]) -> list[Sample]:
    """Join the samples of one video in several class folders: files with the same name and the same bytes.

    Returns:
        The first sample of each video, with its classes as a multi-label; links are read as files.
    """
    joined: list[Sample] = []
    by_name: dict[str, list[int]] = {}  # indices in `joined`
    for sample in samples:
        path = Path(sample.path)
        known = by_name.setdefault(path.name, [])
        same = next((index for index in known if _is_copy(Path(joined[index].path), path)), None)
        classes = {label for label in sample.labels if isinstance(label, int)}
        if same is None:
            known.append(len(joined))
            joined.append(replace(sample, labels=(tuple(classes),)))
        else:
            (own,) = joined[same].labels
            joined[same] = replace(joined[same], labels=(tuple(sorted(classes.union(indices(own)))),))
    return joined


def _is_copy(one: Path, other: Path) -> bool:
    if one.is_dir() or other.is_dir():  # images
        return one.samefile(other)
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def alike_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Pairs of names that look alike, or that a file system may take for one, and in what they differ."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        composed = unicodedata.normalize("NFC", name)  # macOS writes accents as separate characters
        first = seen.setdefault(composed.casefold(), name)
        if first != name:
            same = unicodedata.normalize("NFC", first) == composed
            pairs.append((first, name, "the Unicode form of their letters" if same else "case"))
    return pairs


def read_names(file: Path) -> tuple[str, ...]:
    """The class names in a file, one per line."""
    names = read_class_names(file)
    for first, second, difference in alike_names(names):
        raise DataError(f"{file}: the classes '{first}' and '{second}' are the same but for {difference}")
    return names
