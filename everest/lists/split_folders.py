"""Folders that are lists and not classes: for training, validation and test, under their usual names."""

from __future__ import annotations

from typing import Final

from everest.errors import DataError
from everest.system.storage import Location
from everest.video.folders import subfolders, videos_under

SPLITS: Final = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"} | {
    "test": "test",
    "testing": "test",
}


def split_folders(root: Location, *, labeled: bool = True) -> dict[str, str]:
    """The folders for the lists `train`, `val` and `test`; empty if the folders of `root` are classes.

    Folders with a name of `SPLITS`, in upper or lower case, are lists if `root` has no others, or if one for
    training has class folders. A class may be called `test`.

    Args:
        labeled: False: a folder for training needs no class folders.
    Raises:
        DataError: two folders are for the same list.
    """
    names = subfolders(root)
    splits = [(SPLITS[name.lower()], name) for name in names if name.lower() in SPLITS]
    for_training = [name for key, name in splits if key == "train"]
    if len(splits) < len(names) and not any(
        holds_list(root / name, labeled=labeled) for name in for_training
    ):
        return {}
    found = dict(splits)
    if len(found) < len(splits):
        among = ", ".join(name for _, name in splits)
        raise DataError(f"{root}: two folders for the same list among {among}; merge or rename one")
    return found


def list_folder(root: Location, key: str, *, labeled: bool) -> str | None:
    """The folder to read in place of the list `key`: of this name, or another one of `split_folders`."""
    if holds_list(root / key, labeled=labeled):
        return key
    return split_folders(root, labeled=labeled).get(key)


def holds_list(folder: Location, *, labeled: bool) -> bool:
    """Whether a folder can be read in place of a list; one with labels has folders of videos in it."""
    if not folder.is_dir():
        return False
    return not labeled or any(_has_videos(folder / name) for name in subfolders(folder))


def _has_videos(folder: Location) -> bool:
    """Whether there are videos in a folder that is no video itself, as a folder of images is."""
    return next((video for video in videos_under(folder) if video != folder), None) is not None
