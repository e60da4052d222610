"""The videos, folders and lists that a user names at the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from everest.errors import DataError, OptionError, RecipeError
from everest.lists.columns import read_rows, refuse_shards
from everest.lists.reading import read_unlabeled
from everest.lists.sample import Sample
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import video_name, videos_under

LIST_SUFFIXES: Final = frozenset({".csv", ".tsv", ".txt"})


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """The files, and all videos below the folders; DataError for a path without a video."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such video or folder")
    return [video for path in paths for video in _videos_of(path)]


def refuse_same_stems(videos: Sequence[Path]) -> None:
    """Raise RecipeError for two videos whose images, named by the stem, would be the same file."""
    by_stem: dict[str, Path] = {}
    for video in videos:
        first = by_stem.setdefault(video_name(video), video)
        if first is not video:
            raise RecipeError(
                f"{first} and {video}: their images would have the same name; "
                "run the command once for each, with different output folders"
            )


def find_samples(paths: Sequence[Path], *, root: Path | None) -> list[Sample]:
    """The samples of files, folders and lists; paths in a list are relative to `root`, else to its folder.

    Missing videos are left to the reader of the samples. OptionError for a `root` without a list, DataError
    for an empty folder or a wrong line.
    """
    lists = {path for path in paths if path.suffix.lower() in LIST_SUFFIXES and not path.is_dir()}
    if root is not None and not lists:
        raise OptionError(f"data {root}: no list is named whose paths are relative to it; leave it out")
    samples: list[Sample] = []
    for path in paths:
        if path in lists:
            samples += read_unlabeled(path, root=root or path.parent, skip_missing=True).samples
        else:
            samples += [Sample(path=str(video)) for video in _videos_of(path)]
    return samples


def _videos_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    videos = list(videos_under(path))
    if not videos:
        raise DataError(f"{path}: no videos below this folder")
    return videos


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTable:
    """The videos of a list or folder, with all their columns."""

    location: Location
    root: Location  # the folder that its paths are relative to
    is_list: bool
    rows: tuple[dict[str, str], ...]  # values by column of everest.lists.columns; `path` as written

    @property
    def stem(self) -> str:
        return self.location.stem if self.is_list else self.location.absolute().name

    def locate(self, path: str) -> Location:
        """The video for the `path` of a row."""
        return join_location(self.root, path).absolute()

    def rows_by_path(self) -> dict[str, list[dict[str, str]]]:
        """The rows of each path, in the order of the list; a video with several segments has several rows."""
        rows: dict[str, list[dict[str, str]]] = {}
        for row in self.rows:
            rows.setdefault(row["path"], []).append(row)
        return rows


def read_tables(sources: Sequence[str], root: str | None) -> Iterator[VideoTable]:
    """Read the lists, folders or URLs that a user names, with paths relative to the folder `root`.

    A `root` of None is the folder of a list, a folder itself, or the parent of each of several folders.
    DataError for missing videos, wrong lines, shards, and a folder that is not inside `root`.
    """
    for source in sources:
        location = parse_location(source)
        folder = location.absolute().parent if root is None else parse_location(root)
        if root is None and len(sources) == 1 and location.is_dir():
            folder = location
        if location.exists():
            refuse_shards(location)
        if location.is_dir():
            location = location.resolve()
            folder = folder.resolve()
        # Reading the samples also checks that the videos exist.
        samples = read_unlabeled(location, root=folder).samples
        is_list = location.is_file()
        rows = [row.values for row in read_rows(location)] if is_list else []
        for video in () if is_list else (PurePath(sample.path) for sample in samples):
            if not video.is_relative_to(str(folder)):
                raise DataError(f"{location}: is not inside --data {folder}; name a folder above it")
            parts = video.relative_to(str(location)).parts
            label = {"label": parts[0]} if len(parts) > 1 else {}
            rows.append({"path": str(video.relative_to(str(folder))), **label})
        yield VideoTable(location=location, root=folder, is_list=is_list, rows=tuple(rows))
