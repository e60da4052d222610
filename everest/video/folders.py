"""Videos in folders, on this machine or in a storage: files by their suffix, and folders of images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Final, TypeVar, cast

from everest.errors import DataError, join_first
from everest.system.storage import Location
from everest.system.text import is_unicode

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png"})
VIDEO_SUFFIXES: Final = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".hevc", ".m1v"}
    | {".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
# The first bytes of MP4, Matroska, AVI, FLV, ASF and Ogg files and MPEG streams; no text begins with them.
_VIDEO_HEAD: Final = re.compile(
    rb"\0...(?:ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|0&\xb2u|G@[\0\x11]"
    rb"|\0\0\0?\x01|OggS\0",
    re.DOTALL,
)
# Common names of folders that are lists, not classes: folder name to list.
SPLITS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MACOS_FOLDER: Final = "__MACOSX"  # macOS adds it to the archives that it packs
_NUMBER: Final = re.compile("[0-9]+")

AnyPath = TypeVar("AnyPath", Path, Location)  # what a local folder contains is local


@contextmanager
def as_data_error(path: Location) -> Iterator[None]:
    """Turn an OSError inside the block into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def refuse_video(file: Location, *, expected: str = "a list or a folder of videos") -> None:
    """Raise DataError if a file that will be read as a text is a video, a pipe or a device.

    A video is recognized by its suffix or first bytes; a pipe or a device may have no end.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise DataError(f"{file}: expected {expected}, not a folder, pipe or device")
    problem = f"file that ends in {file.suffix}" if file.suffix.lower() in VIDEO_SUFFIXES else None
    if isinstance(file, Path) and file.is_file() and problem is None:
        with as_data_error(file), file.open("rb") as stream:
            problem = "video" if _VIDEO_HEAD.match(stream.read(16)) else None
    if problem is not None:
        raise DataError(f"{file}: expected {expected}, not a {problem}")


def not_found_text(location: Location, kind: str = "list or folder") -> str:
    """The message for a file or folder of a `kind` that does not exist."""
    with as_data_error(location.parent):
        parent_text = "" if location.parent.exists() else f", nor a folder {location.parent}"
    return f"{location}: no such {kind}{parent_text}"


def subfolders(folder: Location) -> list[str]:
    """The sorted names of a folder's subfolders, without hidden ones."""
    with as_data_error(folder):
        return sorted(path.name for path in _children(folder) if path.is_dir())


def video_name(video: Location) -> str:
    """The name of a video without its suffix; a folder of images such as `mouse.day1` has no suffix."""
    return video.stem if video.suffix.lower() in VIDEO_SUFFIXES else video.name


def videos_under(folder: AnyPath) -> Iterator[AnyPath]:
    """Yield video files and folders of images, at any depth, in the order of their names."""
    return _walk(folder, {folder.resolve()})


def videos_by_subfolder(folder: AnyPath) -> Mapping[str, Sequence[AnyPath]]:
    """The videos in each subfolder; links to the folder itself or to a subfolder are not followed."""
    names = subfolders(folder)
    taken = {folder.resolve(), *((folder / name).resolve() for name in names)}
    return {name: list(_walk(folder / name, taken)) for name in names}


def class_folder_notices(folder: Location) -> list[str]:
    """Lines about videos next to the class folders, and about folders in them that may be the classes."""
    notices = []
    with as_data_error(folder):
        loose = sorted(path.name for path in _children(folder) if path.suffix.lower() in VIDEO_SUFFIXES)
    if loose:
        names = join_first(loose)
        notices.append(f"{folder}: left out, next to the class folders and without a class: {names}")
    classes = subfolders(folder)
    counts = Counter(inner for name in classes for inner in subfolders(folder / name))
    shared = sorted(inner for inner, count in counts.items() if 2 * count > len(classes) > 1)
    folders = (folder / name / inner for name in classes for inner in shared)
    # Such a folder of images is itself a video, not a class.
    if len(shared) > 1 and any(next(videos_under(path), path) != path for path in folders if path.is_dir()):
        found = f"takes its folders {join_first(classes)} as classes, which have {join_first(shared)}"
        advice = "if these are the classes, list the clips in a table: path,class,group"
        notices.append(f"{folder}: {found}; {advice}")
    return notices


def split_folders(root: Location, *, labeled: bool = True) -> dict[str, str]:
    """The folders for the lists `train`, `val` and `test`; empty if the folders of `root` are classes.

    Folders with a name of `SPLITS`, in upper or lower case, are lists if `root` has no others, or if one for
    training has class folders. A class may be called `test`. DataError for two folders of one list.

    Args:
        labeled: if False, a folder for training needs no class folders.
    """
    names = subfolders(root)
    splits = [(SPLITS[name.lower()], name) for name in names if name.lower() in SPLITS]
    training_folders = [name for key, name in splits if key == "train"]
    if len(splits) < len(names) and not any(
        can_be_list(root / name, labeled=labeled) for name in training_folders
    ):
        return {}
    folder_of_list = dict(splits)
    if len(folder_of_list) < len(splits):
        conflicting = ", ".join(name for _, name in splits)
        raise DataError(f"{root}: two folders for the same list among {conflicting}; merge or rename one")
    return folder_of_list


def can_be_list(folder: Location, *, labeled: bool) -> bool:
    """Whether a folder can be read in place of a list; for labels, it needs folders of videos in it."""
    if not folder.is_dir():
        return False
    if not labeled:
        return True
    # A folder of images is itself a video and contains none.
    inner = (folder / name for name in subfolders(folder))
    return any(video != path for path in inner for video in videos_under(path))


def has_only_class_folders(folder: Location) -> bool:
    """Whether a folder has folders of videos, and no annotations of a known data set beside them."""
    with as_data_error(folder):
        beside = (path.suffix.lower() in (".csv", ".json", ".txt") for path in _children(folder))
        names = subfolders(folder)
        return not any(beside) and bool(names) and all(any(videos_under(folder / name)) for name in names)


def images_in(folder: AnyPath) -> Sequence[AnyPath]:
    """The images in a folder, sorted by name; numbers in the names count as numbers."""

    def with_length(number: re.Match[str]) -> str:  # sorted as texts, numbers are then in order
        digits = number[0].lstrip("0")
        return f"{len(digits):04d}{digits}"

    images = (path for path in _children(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(images, key=lambda path: (_NUMBER.sub(with_length, path.name), path.name))


def _walk(folder: AnyPath, visited: set[AnyPath]) -> Iterator[AnyPath]:
    """Yield the videos of a folder; `visited` collects its folders, because links may form a loop."""
    with as_data_error(folder):
        children = sorted(_children(folder), key=attrgetter("name"))
        folders = {path for path in children if path.is_dir()}
    videos = {path for path in children if path.suffix.lower() in VIDEO_SUFFIXES} - folders
    if not folders and not videos and any(path.suffix.lower() in IMAGE_SUFFIXES for path in children):
        yield folder  # next to videos or folders, images are thumbnails or posters
    for path in children:
        if path in videos:
            yield path
        elif path in folders and path.resolve() not in visited:
            visited.add(path.resolve())
            yield from _walk(path, visited)


def _children(folder: AnyPath) -> Iterator[AnyPath]:
    for path in cast("Iterator[AnyPath]", folder.iterdir()):
        if not is_unicode(path.name):
            raise DataError(f"{path}: its name is not UTF-8; rename it")
        if not path.name.startswith(".") and path.name != _MACOS_FOLDER:
            yield path
