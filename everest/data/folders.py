"""Videos in folders: files by their suffix, and folders of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

PICTURES: Final = frozenset({".jpg", ".jpeg", ".png"})
VIDEOS: Final = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts"}
    | {".webm", ".wmv"}
)


def subfolders(folder: Path) -> list[str]:
    """Names, sorted; hidden ones left out."""
    return sorted(path.name for path in _children(folder) if path.is_dir())


def videos_under(folder: Path) -> Iterator[Path]:
    """Video files, and folders of pictures, at any depth, in the order of their names."""
    children = sorted(_children(folder))
    if pictures_in(folder):
        yield folder
    for path in children:
        if path.is_dir():
            yield from videos_under(path)
        elif path.suffix.lower() in VIDEOS:
            yield path


def pictures_in(folder: Path) -> list[Path]:
    """The frames of a folder of pictures, in the order of their names."""
    return sorted(path for path in _children(folder) if path.suffix.lower() in PICTURES)


def _children(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))
