"""The lists and folders that are to be encoded or put into shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from everest.data.list_text import read_rows
from everest.data.samples import read_samples
from everest.data.shards import find_index
from everest.errors import DataError
from everest.system.storage import Location, joined, located


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A list or a folder, with what it says of its videos."""

    place: Location
    root: Location  # what its paths are relative to
    is_list: bool
    rows: tuple[dict[str, str], ...]  # by column of everest.data.list_files; `path` as written

    @property
    def stem(self) -> str:
        return self.place.stem if self.is_list else self.place.absolute().name

    def video(self, path: str) -> Location:
        """The video that a row's `path` means."""
        return joined(self.root, path).absolute()

    def paths(self) -> dict[str, list[dict[str, str]]]:
        """Each path once, in the order of the list, with its rows: segments of one video are several."""
        found: dict[str, list[dict[str, str]]] = {}
        for row in self.rows:
            found.setdefault(row["path"], []).append(row)
        return found


def read_originals(places: Sequence[str], root: str | None) -> Iterator[Original]:
    """The sources that a user names.

    Args:
        root: what their paths are relative to; None: the folder of a list; a folder itself, or of several
            folders that which each lies in.
    Raises:
        DataError: nothing there, lines that make no sense, videos that are missing.
    """
    for text in places:
        place = located(text)
        if root is not None:
            yield read_original(place, located(root))
        else:
            is_only_folder = len(places) == 1 and place.is_dir()
            yield read_original(place, place if is_only_folder else place.absolute().parent)


def read_original(place: Location, root: Location) -> Original:
    """As `read_originals`, of one."""
    if place.exists() and find_index(place):
        raise DataError(f"{place}: holds shards already; name the list or folder that they were made of")
    if place.is_dir():
        place, root = place.resolve(), root.resolve()
    samples = read_samples(
        place, root=root, classes=None, num_classes=None, heads=None, labelled=False
    ).samples
    if place.is_file():
        rows = tuple(row.values for row in read_rows(place))
        return Original(place=place, root=root, is_list=True, rows=rows)
    folder, above = PurePath(str(place)), PurePath(str(root))
    rows = tuple(_row_of_folder(PurePath(sample.path), folder, above) for sample in samples)
    return Original(place=place, root=root, is_list=False, rows=rows)


def _row_of_folder(video: PurePath, folder: PurePath, root: PurePath) -> dict[str, str]:
    """A video's path, and the subfolder that is its class, if it is in one."""
    if not video.is_relative_to(root):
        raise DataError(f"{folder}: does not lie in {root}, which --data names")
    row = {"path": str(video.relative_to(root))}
    inside = video.relative_to(folder)
    return {**row, "label": inside.parts[0]} if len(inside.parts) > 1 else row
