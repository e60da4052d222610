"""Videos without annotations: a folder for each class, perhaps for each split, or no classes at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from everest.data.samples import Sample
from everest.errors import DataError
from everest.video.folders import subfolders, videos_by_subfolder, videos_under

SPLITS: Final = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"} | {
    "test": "test",
    "testing": "test",
}


def folder_samples(root: Path) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """The lists that folders stand for, and the names of the classes, sorted; none where videos lie loose.

    `train`, `val` and `test` with class folders in them give a list each; class folders, or videos alone,
    give `all`, to be cut by `everest prepare split`.

    Raises:
        DataError: no videos, an empty class folder, or names that are the same but for case.
    """
    names = subfolders(root)
    splits = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    if splits and len(splits) == len(names):
        if len(set(splits.values())) < len(splits):
            raise DataError(
                f"{root}: two folders for the same list among {', '.join(names)}; merge or rename one"
            )
        by_list = {splits[name]: videos_by_subfolder(root / name) for name in names}
    else:
        by_list = {"all": videos_by_subfolder(root)}
    if not any(any(classes.values()) for classes in by_list.values()):
        videos = [Sample(path=str(video.absolute())) for video in videos_under(root)]
        return ({"all": videos} if videos else {}), ()
    names = sorted({name for classes in by_list.values() for name in classes})
    _refuse_case(root, names)
    _refuse_empty(root, by_list.values())
    label_of = {name: label for label, name in enumerate(names)}
    return {name: _samples(classes, label_of) for name, classes in by_list.items()}, tuple(names)


def same_but_for_case(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that a file system without case would take for one."""
    seen: dict[str, str] = {}
    return [(seen[name.casefold()], name) for name in names if seen.setdefault(name.casefold(), name) != name]


def _refuse_case(root: Path, names: Sequence[str]) -> None:
    pairs = same_but_for_case(names)
    if pairs:
        one, other = pairs[0]
        raise DataError(
            f"{root}: the classes '{one}' and '{other}' differ in case only; rename or merge them"
        )


def _refuse_empty(root: Path, trees: Iterable[Mapping[str, Sequence[Path]]]) -> None:
    filled = {name for classes in trees for name, videos in classes.items() if videos}
    empty = sorted({name for classes in trees for name in classes} - filled)
    if empty:
        shown = ", ".join(f"'{name}'" for name in empty[:5]) + (", …" if len(empty) > 5 else "")
        raise DataError(f"{root}: no videos in the class folders {shown}; remove them, or put the videos in")


def _samples(classes: Mapping[str, Sequence[Path]], label_of: Mapping[str, int]) -> list[Sample]:
    return [
        Sample(path=str(video.absolute()), labels=(label_of[name],))
        for name, videos in classes.items()
        for video in videos
    ]
