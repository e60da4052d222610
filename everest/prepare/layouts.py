"""The known layouts of data sets (layouts.yaml), and a reader for the annotations of each."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter

from everest.config.yaml import read_yaml
from everest.errors import DataError, did_you_mean
from everest.lists.columns import quote, read_lines
from everest.lists.sources import LIST_FILES
from everest.system.text import read_json
from everest.video.folders import as_data_error

Sources = Mapping[str, Sequence[Path]]  # the annotation files by role


class VideoRef(NamedTuple):
    """A file that may hold a sample: the sample is the entire file, or the segment from start to end."""

    name: str  # file name without the suffix
    start: float | None = None  # seconds
    end: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None  # the first frame after the segment


@dataclass(frozen=True, slots=True)
class AnnotatedSample:
    """A sample as annotations name it."""

    refs: tuple[VideoRef, ...]  # in order of preference; the first reference with a file is taken
    labels: tuple[int, ...] = ()  # one label per head; empty if the labels are secret
    folders: frozenset[str] = frozenset()  # likely folders of the file, to choose among files of one name


# The samples of each list (train, val, test), and the names of the classes in the order of their labels.
Lists = dict[str, list[AnnotatedSample]]
Annotations = tuple[Lists, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set is published: an entry of layouts.yaml, which describes the keys."""

    name: str
    title: str
    expects: str
    needs: Mapping[str, str]
    may_have: Mapping[str, str] = field(default_factory=dict)
    column: str | None = None
    heads: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


TABLE: Final = Path(__file__).with_name("layouts.yaml")
LAYOUTS: Final = {
    layout.name: layout
    for layout in TypeAdapter(list[Layout]).validate_python(read_yaml(TABLE.read_text("utf-8"), str(TABLE)))
}


def require_one_file(files: Sequence[Path]) -> Path:
    """The only file; DataError if there are several."""
    if len(files) > 1:
        names = ", ".join(map(str, files[:3]))
        raise DataError(
            f"{len(files)} files with the same annotations ({names}); name the folder of one by --annotations"
        )
    return files[0]


def read_list_entries(sources: Sources) -> Iterator[tuple[str, str, Any]]:
    """Yield the list's name, the location and the entry of each of `entries` of lists that have a file."""
    files = {name: require_one_file(sources[name]) for name in LIST_FILES if sources.get(name)}
    for name, file in files.items():
        for position, entry in read_entries(file):
            yield name, position, entry


@contextmanager
def entry_errors(position: str) -> Iterator[None]:
    """Turn errors for missing fields and wrong values into DataErrors that name the location."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{position} has no field {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{position}: {error}") from error


def read_entries(file: Path) -> list[tuple[str, Any]]:
    """The lines of a text, the rows of a table or the objects of a JSON list, with their locations."""
    if file.suffix == ".txt":
        return [(f"{file}:{number}", line.strip()) for number, line in read_lines(file)]
    if file.suffix == ".csv":
        try:
            with as_data_error(file), file.open(encoding="utf-8-sig", newline="") as text:
                rows = list(csv.DictReader(text))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file}: not a table separated by commas ({error})") from error
        # In the last columns of a row that is too short, the cells are None.
        rows = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
    else:
        document = read_document(file)
        rows = document.get("clips") if isinstance(document, dict) else document
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{file}: a list of objects is expected; download it again")
    return [(f"{file}: entry {number}", row) for number, row in enumerate(rows, start=1)]


def read_document(file: Path) -> Any:
    """The JSON document in a file; DataError if it cannot be read, or is not JSON."""
    try:
        with as_data_error(file):
            return read_json(file)
    except ValueError as error:
        raise DataError(f"{file}: not a JSON document ({error}); download it again") from error


def parse_time(stamp: str) -> float:
    """The seconds of a time such as `00:01:02.34`; ValueError for any other text."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stamp.strip())
    if match is None:
        raise ValueError(f"'{stamp}' is no time as 00:01:02.34")
    hours, minutes, seconds = match.groups()
    return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 6)


def order_by_label(label_of: Mapping[str, int], file: Path) -> tuple[str, ...]:
    """The class names in the order of their labels; DataError if a label from 0 on is missing."""
    if sorted(label_of.values()) != list(range(len(label_of))):
        count = len(label_of)
        raise DataError(
            f"{file}: its {count} classes do not have {count} successive numbers; download it again"
        )
    return tuple(sorted(label_of, key=lambda name: label_of[name]))


_SPLITS: Final = {"train": "train", "validate": "val", "validation": "val", "val": "val", "test": "test"}


def _read_ucf101(sources: Sources) -> Annotations:
    """`classInd.txt` has `number name` from 1, the lists `Class/file.avi number`, test lists no number.

    The class is therefore taken from the folder of a file.
    """
    classes = require_one_file(sources["classes"])
    label_of = {}
    for position, line in read_entries(classes):
        first, _, name = line.partition(" ")
        if not (first.isdecimal() and name):
            raise DataError(f"{position}: a line is `number name`, this is {quote(line)}")
        label_of[name.strip()] = int(first) - 1
    names = order_by_label(label_of, classes)
    lists: Lists = defaultdict(list)
    for role, position, line in read_list_entries(sources):
        folder, slash, name = re.sub(r"\s+\d+\s*$", "", line).rpartition("/")
        if not slash or folder not in label_of:
            raise DataError(f"{position}: no class of the data set in {quote(line)}")
        refs = (VideoRef(Path(name).stem),)
        lists[role].append(AnnotatedSample(refs, (label_of[folder],), frozenset({folder})))
    return lists, names


def _read_hmdb51(sources: Sources) -> Annotations:
    """A file per class, lines `file.avi N`: 1 is training, 2 is test, 0 is unused (split_readme.txt)."""
    files: dict[str, list[Path]] = {}
    for file in sources["splits"]:
        files.setdefault(re.sub(r"_test_split\d\.txt$", "", file.name), []).append(file)
    names = sorted(files)
    lists: Lists = defaultdict(list)
    for label, name in enumerate(names):
        for position, line in read_entries(require_one_file(files[name])):
            video, _, flag = line.rpartition(" ")
            if flag not in ("0", "1", "2") or not video:
                raise DataError(f"{position}: a line is `file.avi 0|1|2`, this is {quote(line)}")
            if flag != "0":
                refs = (VideoRef(Path(video.strip()).stem),)
                sample = AnnotatedSample(refs, (label,), frozenset({name}))
                lists["train" if flag == "1" else "test"].append(sample)
    return lists, tuple(names)


def _read_ssv2(sources: Sources) -> Annotations:
    """The label is the `template` without brackets; test labels are in `test-answers.csv`, if it is there."""
    classes = require_one_file(sources["classes"])
    document = read_document(classes)
    with entry_errors(f"{classes}: entry 1"):
        label_of = {str(name): int(label) for name, label in dict(document).items()}
    names = order_by_label(label_of, classes)
    answers = require_one_file(sources["answers"]) if sources["answers"] and sources["test"] else None
    label_of_id = {}  # labels of test videos by their ids
    for number, line in read_lines(answers) if answers else ():
        (fields,) = csv.reader([line.strip()], delimiter=";")
        if len(fields) != 2 or fields[1] not in label_of:
            raise DataError(f"{answers}:{number}: a line is `id;label`, this is {quote(line)}")
        label_of_id[fields[0]] = label_of[fields[1]]
    lists: Lists = defaultdict(list)
    for role, location, record in read_list_entries(sources):
        known, field = (label_of_id, "id") if role == "test" else (label_of, "template")
        with entry_errors(location):
            ref = VideoRef(str(record["id"]))
            key = str(record[field]).replace("[", "").replace("]", "")
            is_secret = role == "test" and answers is None
            if not is_secret and key not in known:
                raise ValueError(f"unknown label '{key}'{did_you_mean(key, known)}")
            lists[role].append(AnnotatedSample((ref,), () if is_secret else (known[key],)))
    return lists, names


def _read_kinetics(sources: Sources) -> Annotations:
    """Columns `label, youtube_id, time_start, time_end, split`; labels of tests may be secret.

    A file is named ID_000010_000020 by its seconds, or ID if the ID belongs to one sample only.
    """
    rows: dict[str, list[tuple[str, dict[str, str]]]] = {}  # rows of each split, with their locations
    files: dict[str, list[Path]] = {}
    for file in sources["tables"]:
        for location, row in read_entries(file):
            name = row.get("split") or next((word for word in _SPLITS if word in file.stem.lower()), "")
            if name not in _SPLITS:
                raise DataError(f"{location}: split '{name}' is none of {', '.join(_SPLITS)}")
            rows.setdefault(_SPLITS[name], []).append((location, row))
            files.setdefault(_SPLITS[name], []).append(file)
    for listing in files.values():
        require_one_file(sorted(set(listing)))
    labels = {row.get("label") for split in rows if split != "test" for _, row in rows[split]}
    names = tuple(sorted(label for label in labels if label))
    label_of = {name: label for label, name in enumerate(names)}
    times_listed = Counter(row.get("youtube_id") for members in rows.values() for _, row in members)
    lists: Lists = defaultdict(list)
    for split, location, row in ((name, *located) for name in LIST_FILES for located in rows.get(name, ())):
        with entry_errors(location):
            video = row["youtube_id"]
            label = row.get("label")
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            refs = [VideoRef(f"{video}_{start:06d}_{end:06d}")]
            if times_listed[video] == 1:
                refs.append(VideoRef(video))
            if label and label not in label_of:
                raise ValueError(f"'{label}' is no class of the training list")
            folders = frozenset({split, label, label.replace(" ", "_")} if label else {split})
            labels = (label_of[label],) if label else ()
            lists[split].append(AnnotatedSample(tuple(refs), labels, folders))
    return lists, names


def _read_oscc(sources: Sources) -> Annotations:
    """`clips` with `state_change` and times in the video (`parent_*`) and in the annotated clip (`clip_*`).

    The field names are from fho_oscc-pnr_*.json (ego4d-data.org, annotation schemas). Files are full videos,
    canonical clips, or pieces that a program made, named by their `unique_id`.
    """
    lists: Lists = defaultdict(list)
    for role, location, record in read_list_entries(sources):
        with entry_errors(location):
            refs = [VideoRef(str(record["unique_id"]))]
            if record.get("clip_uid"):  # test records have no clip
                start, end = float(record["clip_start_sec"]), float(record["clip_end_sec"])
                refs.append(VideoRef(str(record["clip_uid"]), start=start, end=end))
            start, end = float(record["parent_start_sec"]), float(record["parent_end_sec"])
            refs.append(VideoRef(str(record["video_uid"]), start=start, end=end))
            labels = () if role == "test" else (int(bool(record["state_change"])),)
            lists[role].append(AnnotatedSample(tuple(refs), labels))
    return lists, ("no state change", "state change")


def _read_diving48(sources: Sources) -> Annotations:
    """Objects `vid_name, label, start_frame, end_frame`; the vocabulary has the parts of each dive."""
    lists: Lists = defaultdict(list)
    for role, location, record in read_list_entries(sources):
        with entry_errors(location):
            first, end = int(record["start_frame"]), int(record["end_frame"])
            ref = VideoRef(str(record["vid_name"]), start_frame=first, end_frame=end)
            lists[role].append(AnnotatedSample((ref,), (int(record["label"]),)))
    names: tuple[str, ...] = ()
    if sources["classes"]:
        vocabulary = require_one_file(sources["classes"])
        dives = read_document(vocabulary)
        with entry_errors(f"{vocabulary}: entry 1"):
            names = tuple(dive if isinstance(dive, str) else " ".join(dive) for dive in dives)
    return lists, names


def _read_epic(sources: Sources) -> Annotations:
    """Segments of videos, with verb and noun (github.com/epic-kitchens/epic-kitchens-100-annotations)."""
    lists: Lists = defaultdict(list)
    for role, location, row in read_list_entries(sources):
        with entry_errors(location):
            start, end = parse_time(row["start_timestamp"]), parse_time(row["stop_timestamp"])
            labels = (int(row["verb_class"]), int(row["noun_class"])) if role != "test" else ()
            ref = VideoRef(row["video_id"], start=start, end=end)
            lists[role].append(AnnotatedSample((ref,), labels, frozenset({row["participant_id"]})))
    return lists, ()


READERS: Final[dict[str, Callable[[Sources], Annotations]]] = {
    "ucf101": _read_ucf101,
    "hmdb51": _read_hmdb51,
    "ssv2": _read_ssv2,
    "kinetics": _read_kinetics,
    "oscc": _read_oscc,
    "diving48": _read_diving48,
    "epic-kitchens-100": _read_epic,
}
