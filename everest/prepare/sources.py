"""Lists and folders as a check reads them: what is wrong is noted row by row, and nothing is left out.

The lists and folders that are to be encoded or put into shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from everest.data.labels import LabelRules, names_used, read_class_names
from everest.data.list_text import HEAD_PREFIX, ListRow, read_rows
from everest.data.samples import Sample, SampleList, read_samples, samples_of_rows
from everest.data.shards import find_index
from everest.errors import DataError
from everest.prepare.class_folders import same_but_for_case
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import as_data_error, videos_by_subfolder, videos_under


@dataclass(frozen=True, slots=True)
class ListedSample:
    """A row of a list, or a file of a folder."""

    place: str  # file:line, for messages; of a folder the path
    sample: Sample  # without labels where they are wrong
    problem: str | None = None  # what is wrong with the row


@dataclass(frozen=True, kw_only=True)
class Source:
    """A list or folder of videos."""

    path: Path
    rows: Sequence[ListedSample]
    labelled: bool
    pretrains: bool  # serves pre-training, which may see again what is in other lists
    unreadable: Mapping[str, str]  # place of a row that names no sample, and why

    @property
    def is_list(self) -> bool:
        return self.path.is_file()


def read_names(file: Path) -> tuple[str, ...]:
    """Reads class names, one per line.

    Raises:
        DataError: as `read_class_names`, and if two names are the same but for case.
    """
    names = read_class_names(file)
    for first, second in same_but_for_case(names):
        raise DataError(f"{file}: the classes '{first}' and '{second}' are the same but for case")
    return names


def read_sources(
    paths: Mapping[Path, bool], *, root: Path | None, rules: LabelRules
) -> tuple[list[Source], LabelRules]:
    """Read lists and folders; returns them and the rules by which their labels were read.

    Args:
        paths: and whether they serve pre-training, where labels do not count.
        root: what paths in a list are relative to; None takes the folder of the list.
        rules: names that are not given are those of the first source with labels that count, sorted.
    Raises:
        DataError: one is not there, is no list, or holds nothing.
    """
    rows = {path: _read_rows(path) for path in paths}
    if not rules.names and not rules.heads:
        first = next((path for path, pretrains in paths.items() if not pretrains), None)
        names = _names_found(first, rows[first]) if first else ()
        rules = LabelRules(names=names, num_classes=rules.num_classes)
    sources = [
        _of_folder(path, rules, paths[path])
        if found is None
        else _of_list(path, found, root or path.parent, rules, paths[path])
        for path, found in rows.items()
    ]
    return sources, rules


def _read_rows(path: Path) -> list[ListRow] | None:
    with as_data_error(path):
        if not path.exists():
            raise DataError(f"{path}: no such list or folder")
        return read_rows(path) if path.is_file() else None


def _names_found(path: Path, rows: Sequence[ListRow] | None) -> tuple[str, ...]:
    """The names that a list uses as labels, or those of class folders; none where labels are numbers."""
    if rows is None:
        return tuple(name for name, videos in videos_by_subfolder(path).items() if videos)
    return names_used(rows)


def _of_list(path: Path, rows: Sequence[ListRow], root: Path, rules: LabelRules, pretrains: bool) -> Source:
    rules = replace(rules, heads=rules.heads or heads_in(rows))
    labelled = not pretrains and any("label" in row.values or rules.heads for row in rows)
    samples, problems = samples_of_rows(rows, root, rules if labelled else None)
    return Source(
        path=path,
        rows=[ListedSample(place, sample, problems.get(place)) for place, sample in samples.items()],
        labelled=labelled,
        pretrains=pretrains,
        unreadable={place: problem for place, problem in problems.items() if place not in samples},
    )


def heads_in(rows: Sequence[ListRow]) -> dict[str, int]:
    """The columns `label.NAME`, with no limit to their labels."""
    columns = dict.fromkeys(name for row in rows for name in row.values if name.startswith(HEAD_PREFIX))
    return {name.removeprefix(HEAD_PREFIX): 0 for name in columns}


def _of_folder(path: Path, rules: LabelRules, pretrains: bool) -> Source:
    by_class = {} if pretrains else videos_by_subfolder(path)
    labelled = any(by_class.values())
    if labelled:
        label_of_name = {name: label for label, name in enumerate(rules.names)}
        rows = [
            _in_class(video, name, label_of_name.get(name))
            for name, videos in by_class.items()
            for video in videos
        ]
    else:
        rows = [ListedSample(str(video), Sample(path=str(video.absolute()))) for video in videos_under(path)]
    if not rows:
        raise DataError(f"{path}: no videos in it")
    return Source(path=path, rows=rows, labelled=labelled, pretrains=pretrains, unreadable={})


def _in_class(video: Path, name: str, label: int | None) -> ListedSample:
    labels = () if label is None else (label,)
    problem = f"unknown class '{name}'" if label is None else None
    return ListedSample(str(video), Sample(path=str(video.absolute()), labels=labels), problem)


def read_labelled(source: Path, *, root: Path, classes: Path | None) -> tuple[SampleList, list[str]]:
    """The samples of a list or a folder, strictly, and the names of their labels where they have several.

    Labels are read where there are any.

    Raises:
        DataError: a line or a file is wrong, `everest prepare check` tells all of them; or the list has
            labels of two kinds.
    """
    rows = _read_rows(source)
    heads = heads_in(rows or [])
    if rows is None:
        labelled = any(videos_by_subfolder(source).values())
    else:
        single = any("label" in row.values for row in rows)
        if heads and single:
            raise DataError(f"{source}: has columns label and label.NAME; rename label to label.NAME, too")
        labelled = bool(heads) or single
    found = read_samples(
        source,
        root=root,
        classes=read_names(classes) if classes else None,
        heads=heads or None,
        labeled=labelled,
    )
    return found, list(heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceList:
    """A list or a folder, with what it says of its videos."""

    place: Location
    root: Location  # what its paths are relative to
    is_list: bool
    rows: tuple[dict[str, str], ...]  # by column of everest.data.list_text; `path` as written

    @property
    def stem(self) -> str:
        return self.place.stem if self.is_list else self.place.absolute().name

    def video(self, path: str) -> Location:
        """The video that a row's `path` means."""
        return join_location(self.root, path).absolute()

    def paths(self) -> dict[str, list[dict[str, str]]]:
        """Each path once, in the order of the list, with its rows: segments of one video are several."""
        found: dict[str, list[dict[str, str]]] = {}
        for row in self.rows:
            found.setdefault(row["path"], []).append(row)
        return found


def read_originals(places: Sequence[str], root: str | None) -> Iterator[SourceList]:
    """The sources that a user names.

    Args:
        root: what their paths are relative to; None: the folder of a list; a folder itself, or of several
            folders that which each lies in.
    Raises:
        DataError: nothing there, lines that make no sense, videos that are missing.
    """
    for text in places:
        place = parse_location(text)
        if root is not None:
            yield read_original(place, parse_location(root))
        else:
            is_only_folder = len(places) == 1 and place.is_dir()
            yield read_original(place, place if is_only_folder else place.absolute().parent)


def read_original(place: Location, root: Location) -> SourceList:
    """As `read_originals`, of one."""
    if place.exists() and find_index(place):
        raise DataError(f"{place}: holds shards already; name the list or folder that they were made of")
    if place.is_dir():
        place, root = place.resolve(), root.resolve()
    samples = read_samples(place, root=root, labeled=False).samples
    if place.is_file():
        rows = tuple(row.values for row in read_rows(place))
        return SourceList(place=place, root=root, is_list=True, rows=rows)
    folder, above = PurePath(str(place)), PurePath(str(root))
    rows = tuple(_row_of_folder(PurePath(sample.path), folder, above) for sample in samples)
    return SourceList(place=place, root=root, is_list=False, rows=rows)


def _row_of_folder(video: PurePath, folder: PurePath, root: PurePath) -> dict[str, str]:
    """A video's path, and the subfolder that is its class, if it is in one."""
    if not video.is_relative_to(root):
        raise DataError(f"{folder}: does not lie in {root}, which --data names")
    row = {"path": str(video.relative_to(root))}
    inside = video.relative_to(folder)
    return {**row, "label": inside.parts[0]} if len(inside.parts) > 1 else row
