"""The lists and folders that `everest prepare` reads.

A check reads them tolerantly: the problem of each row is kept with the row. Encoding and sharding keep the
columns of a list as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from everest.config.heads import Head, Heads
from everest.data.labels import LabelRules, names_used
from everest.data.list_header import HEAD_PREFIX, is_known
from everest.data.list_text import ListRow, read_rows
from everest.data.samples import Sample, SampleList, read_samples, samples_of_rows
from everest.data.shards import find_index
from everest.errors import DataError, RecipeError
from everest.prepare.class_folders import read_names
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import as_data_error, videos_by_subfolder, videos_under


@dataclass(frozen=True, slots=True)
class ListedSample:
    """A row of a list, or a file of a folder."""

    where: str  # file:line for messages; the path of a file in a folder
    sample: Sample  # without labels if they are wrong
    problem: str | None = None  # what is wrong with the row


@dataclass(frozen=True, kw_only=True)
class Source:
    """A list or folder of videos."""

    path: Path
    rows: Sequence[ListedSample]
    labeled: bool
    pretrains: bool  # for pre-training, which may use videos of other lists again
    unreadable: Mapping[str, str]  # `where` of each row that names no sample, and why

    @property
    def is_list(self) -> bool:
        return self.path.is_file()


def read_sources(
    paths: Mapping[Path, bool], *, root: Path | None, rules: LabelRules
) -> tuple[list[Source], LabelRules]:
    """Read lists and folders; returns them and the rules for their labels.

    Args:
        paths: each with whether it is for pre-training, which ignores labels.
        root: the folder that paths in a list are relative to; None takes the folder of the list.
        rules: if they have no names, those used by the first source that is not for pre-training, sorted.
    Raises:
        DataError: a source does not exist, is no list, or is empty.
    """
    rows = {path: read_list(path) for path in paths}
    if not rules.names and not rules.heads:
        names: Sequence[str] = ()
        first = next((path for path, pretrains in paths.items() if not pretrains), None)
        if first is not None:
            listed = rows[first]
            if listed is None:
                names = [name for name, videos in videos_by_subfolder(first).items() if videos]
            else:
                names = names_used(listed)
        rules = LabelRules(names=tuple(names), num_classes=rules.num_classes)
    sources = []
    for path, listed in rows.items():
        if listed is None:
            sources.append(_read_folder(path, rules, pretrains=paths[path]))
            continue
        header = listed[0].header
        if header is not None and header.is_unclear and not paths[path]:
            raise header.no_classes(path)
        own_rules = replace(rules, heads=rules.heads or open_heads(heads_in(listed)))
        labeled = not paths[path] and any("label" in row.values or own_rules.heads for row in listed)
        samples, problems = samples_of_rows(listed, root or path.parent, own_rules if labeled else None)
        source = Source(
            path=path,
            rows=[ListedSample(where, sample, problems.get(where)) for where, sample in samples.items()],
            labeled=labeled,
            pretrains=paths[path],
            unreadable={where: problem for where, problem in problems.items() if where not in samples},
        )
        sources.append(source)
    return sources, rules


def read_list(path: Path, class_column: str | None = None) -> list[ListRow] | None:
    """The rows of a list; None for a folder."""
    with as_data_error(path):
        if not path.exists():
            raise DataError(f"{path}: no such list or folder")
        return read_rows(path, class_column=class_column) if path.is_file() else None


def open_heads(names: Iterable[str]) -> Heads:
    """Heads of classes whose number is not known."""
    return tuple(Head(name=name, outputs=0) for name in names)


def heads_in(rows: Sequence[ListRow]) -> list[str]:
    """The names of the columns `label.NAME`."""
    columns = dict.fromkeys(name for row in rows for name in row.values if name.startswith(HEAD_PREFIX))
    return [name.removeprefix(HEAD_PREFIX) for name in columns]


def _read_folder(path: Path, rules: LabelRules, *, pretrains: bool) -> Source:
    by_class = {} if pretrains else videos_by_subfolder(path)
    labeled = any(by_class.values())
    rows = []
    if labeled:
        for name, videos in by_class.items():
            labels = (rules.names.index(name),) if name in rules.names else ()
            problem = None if labels else f"unknown class '{name}'"
            for video in videos:
                sample = Sample(path=str(video.absolute()), labels=labels)
                rows.append(ListedSample(str(video), sample, problem))
    else:
        rows = [ListedSample(str(video), Sample(path=str(video.absolute()))) for video in videos_under(path)]
    if not rows:
        raise DataError(f"{path}: no videos in it")
    return Source(path=path, rows=rows, labeled=labeled, pretrains=pretrains, unreadable={})


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """The samples of a list or folder, with labels if it has any."""

    data: SampleList
    heads: list[str]  # names of the labels, if a sample has several
    rows: list[ListRow] | None  # of each sample; None for a folder

    def without_labels(self, source: Path) -> str | None:
        """Returns a notice if a sheet has columns, but none that is known to hold the classes."""
        header = self.rows[0].header if self.rows else None
        if header is None or header.has_classes or not header.unassigned:
            return None
        columns = ", ".join(header.unassigned)
        return (
            f"{source}: no column is known to hold the classes ({columns}), so the lists have no labels; "
            "--class-column NAME names it"
        )


def read_labeled(
    source: Path, *, root: Path, classes: Path | None, class_column: str | None = None
) -> Labeled:
    """Reads the samples of a list or a folder.

    Args:
        class_column: the column of classes in a sheet; None finds it by its name.
    Raises:
        DataError: a line or a file is wrong (`everest prepare check` lists all problems), the list has
            columns `label` and `label.NAME`, or several columns may hold the classes.
        RecipeError: there is no column `class_column`.
    """
    rows = read_list(source, class_column)
    heads = heads_in(rows or [])
    if rows is None:
        if class_column is not None:
            raise RecipeError(f"--class-column {class_column}: {source} is a folder, which has no columns")
        labeled = any(videos_by_subfolder(source).values())
    else:
        has_label = any("label" in row.values for row in rows)
        if heads and has_label:
            raise DataError(f"{source}: has columns label and label.NAME; rename label to label.NAME, too")
        header = rows[0].header
        labeled = bool(heads) or has_label or (header is not None and header.is_unclear)
    data = read_samples(
        source,
        root=root,
        classes=read_names(classes) if classes else None,
        heads=open_heads(heads),
        labeled=labeled,
        class_column=class_column,
    )
    return Labeled(data=data, heads=heads, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceList:
    """A list or a folder, with all columns of each video."""

    location: Location
    root: Location  # that its paths are relative to
    is_list: bool
    rows: tuple[dict[str, str], ...]  # by column of everest.data.list_text; `path` as written

    @property
    def stem(self) -> str:
        return self.location.stem if self.is_list else self.location.absolute().name

    def without_further_columns(self) -> SourceList:
        """The same list with the columns that training reads."""
        rows = tuple({key: text for key, text in row.items() if is_known(key)} for row in self.rows)
        return replace(self, rows=rows)

    def video(self, path: str) -> Location:
        """The video for the `path` of a row."""
        return join_location(self.root, path).absolute()

    def paths(self) -> dict[str, list[dict[str, str]]]:
        """Each path once, in the order of the list, with its rows: several for segments of one video."""
        rows_by_path: dict[str, list[dict[str, str]]] = {}
        for row in self.rows:
            rows_by_path.setdefault(row["path"], []).append(row)
        return rows_by_path


def read_originals(sources: Sequence[str], root: str | None) -> Iterator[SourceList]:
    """The lists, folders or URLs that a user names.

    Args:
        root: the folder that paths are relative to; None takes the folder of a list, a folder itself, or the
            parent of each of several folders.
    Raises:
        DataError: a source does not exist, its lines are wrong, or videos are missing.
    """
    for text in sources:
        location = parse_location(text)
        if root is not None:
            folder = parse_location(root)
        else:
            is_only_folder = len(sources) == 1 and location.is_dir()
            folder = location if is_only_folder else location.absolute().parent
        if location.exists() and find_index(location):
            raise DataError(f"{location}: holds shards already; name the list or folder they were made from")
        if location.is_dir():
            location, folder = location.resolve(), folder.resolve()
        # Also checks that the videos are there.
        samples = read_samples(location, root=folder, labeled=False).samples
        is_list = location.is_file()
        rows = [row.values for row in read_rows(location)] if is_list else []
        for video in () if is_list else (PurePath(sample.path) for sample in samples):
            if not video.is_relative_to(str(folder)):
                raise DataError(f"{location}: is not inside {folder}, which --data names")
            inside = video.relative_to(str(location)).parts
            label = {"label": inside[0]} if len(inside) > 1 else {}
            rows.append({"path": str(video.relative_to(str(folder))), **label})
        yield SourceList(location=location, root=folder, is_list=is_list, rows=tuple(rows))
