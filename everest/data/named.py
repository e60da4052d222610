"""What a user names at the command line: videos, folders of videos, lists of videos or segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from everest.data.lists import Sample, read_samples
from everest.errors import DataError, RecipeError
from everest.video.folders import videos_under

LISTS: Final = frozenset({".csv", ".tsv", ".txt"})


def named_videos(paths: Sequence[Path]) -> list[Path]:
    """Files, and all videos below folders.

    Raises:
        DataError: nothing at a path, or a folder without a video.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such video or folder")
    return [video for path in paths for video in _videos(path)]


def refuse_same_stems(videos: Sequence[Path]) -> None:
    """Raise RecipeError for two videos whose pictures, named by the stem, would be one file."""
    first: dict[str, Path] = {}
    for video in videos:
        other = first.setdefault(video.stem, video)
        if other is not video:
            raise RecipeError(
                f"{other} and {video}: their pictures would have one name; "
                "give them one after the other, with a folder for each"
            )


def named_samples(paths: Sequence[Path], *, root: Path | None) -> list[Sample]:
    """As `named_videos`, and lists of videos or of segments; what is not there is left to whoever reads it.

    Args:
        root: where the paths of the lists begin; None: in the folder of each list.
    Raises:
        DataError: a list that cannot be used, or a folder without a video.
        RecipeError: a root, and no list.
    """
    if root is not None and not any(_is_list(path) for path in paths):
        raise RecipeError(f"--data {root}: says where the paths of a list begin, and no list is named")
    return [sample for path in paths for sample in _samples(path, root)]


def _samples(path: Path, root: Path | None) -> Sequence[Sample]:
    if not _is_list(path):
        return [Sample(path=str(video)) for video in _videos(path)]
    listed = read_samples(
        path,
        root=root or path.parent,
        classes=None,
        num_classes=None,
        heads=None,
        labelled=False,
        may_miss=True,
    )
    return listed.samples


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LISTS and not path.is_dir()


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    below = list(videos_under(path))
    if not below:
        raise DataError(f"{path}: no videos below this folder")
    return below
