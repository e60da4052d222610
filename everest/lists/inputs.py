"""The videos that a user names at the command line: files, folders, and lists of videos or segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from everest.errors import DataError, RecipeError
from everest.lists.sample import Sample
from everest.lists.samples import read_samples
from everest.video.folders import videos_under

LISTS: Final = frozenset({".csv", ".tsv", ".txt"})


def named_videos(paths: Sequence[Path]) -> list[Path]:
    """Returns the files, and all videos below the folders.

    Raises:
        DataError: a path does not exist, or a folder has no video.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such video or folder")
    return [video for path in paths for video in _videos(path)]


def refuse_same_stems(videos: Sequence[Path]) -> None:
    """Raise RecipeError for two videos whose images, named by the stem, would be the same file."""
    by_stem: dict[str, Path] = {}
    for video in videos:
        first = by_stem.setdefault(video.stem, video)
        if first is not video:
            raise RecipeError(
                f"{first} and {video}: their images would have the same name; "
                "run the command once for each, with different output folders"
            )


def named_samples(paths: Sequence[Path], *, root: Path | None) -> list[Sample]:
    """Returns the samples of files, folders and lists; missing videos are left to the reader of the samples.

    Args:
        root: the folder that paths in the lists are relative to; None: the folder of each list.
    Raises:
        DataError: a list cannot be used, or a folder has no video.
        RecipeError: a root is given, but no list.
    """
    lists = {path for path in paths if path.suffix.lower() in LISTS and not path.is_dir()}
    if root is not None and not lists:
        raise RecipeError(f"--data {root}: paths in a list are relative to it, and no list is named")
    samples: list[Sample] = []
    for path in paths:
        if path in lists:
            samples += read_samples(path, root=root or path.parent, labeled=False, may_miss=True).samples
        else:
            samples += [Sample(path=str(video)) for video in _videos(path)]
    return samples


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    videos = list(videos_under(path))
    if not videos:
        raise DataError(f"{path}: no videos below this folder")
    return videos
