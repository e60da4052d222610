"""Data sets whose annotations are tables: Kinetics, EPIC-Kitchens-100."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from everest.errors import DataError
from everest.prepare.layout import (
    AnnotatedSample,
    Annotations,
    Layout,
    Sources,
    VideoRef,
    naming_entry,
    only,
    read_table,
)
from everest.video.folders import as_data_error

_SPLITS: Final = {"train": "train", "validate": "val", "validation": "val", "val": "val", "test": "test"}
_TIME: Final = re.compile(r"(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(\.\d+)?)")


def _is_kinetics(file: Path) -> bool:
    with as_data_error(file), file.open(encoding="utf-8-sig", errors="replace") as text:
        return "youtube_id" in text.readline(1000).strip().split(",")


def _read_kinetics(sources: Sources) -> Annotations:
    """Columns `label, youtube_id, time_start, time_end, split`; the labels of tests may be kept secret.

    A file is called ID_000010_000020 by its seconds, or by its ID alone where that names one sample.
    """
    rows: dict[str, list[tuple[Path, int, Mapping[str, str]]]] = {}
    for file in sources["tables"]:
        for number, row in enumerate(read_table(file), start=1):
            rows.setdefault(_kinetics_split(file, number, row), []).append((file, number, row))
    for split, members in rows.items():
        files = sorted({file for file, _, _ in members})
        if len(files) > 1:
            raise DataError(
                f"{files[0]} and {files[1]} both list '{split}'; name the folder of one by --annotations"
            )
    labels = {row.get("label") for split in rows if split != "test" for _, _, row in rows[split]}
    names = tuple(sorted(label for label in labels if label))
    label_of = {name: label for label, name in enumerate(names)}
    times_listed = Counter(row.get("youtube_id") for members in rows.values() for _, _, row in members)
    lists = {
        split: [_kinetics_entry(*at, split, label_of, times_listed) for at in rows[split]]
        for split in ("train", "val", "test")
        if split in rows
    }
    return Annotations(lists=lists, class_names=names)


def _kinetics_split(file: Path, number: int, row: Mapping[str, str]) -> str:
    """By the column, else by the file's name."""
    told = row.get("split") or next((word for word in _SPLITS if word in file.stem.lower()), "")
    if told not in _SPLITS:
        raise DataError(f"{file}: entry {number}: split '{told}' is none of {', '.join(_SPLITS)}")
    return _SPLITS[told]


def _kinetics_entry(
    file: Path,
    number: int,
    row: Mapping[str, str],
    split: str,
    label_of: Mapping[str, int],
    times_listed: Counter[str | None],
) -> AnnotatedSample:
    with naming_entry(file, number):
        video = row["youtube_id"]
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        places = [VideoRef(f"{video}_{start:06d}_{end:06d}")]
        if times_listed[video] == 1:
            places.append(VideoRef(video))
        label = row.get("label")
        if not label:
            return AnnotatedSample(tuple(places), folders=frozenset({split}))
        if label not in label_of:
            raise ValueError(f"'{label}' is no class of the training list")
        return AnnotatedSample(
            tuple(places), (label_of[label],), frozenset({split, label, label.replace(" ", "_")})
        )


def _read_epic(sources: Sources) -> Annotations:
    """Segments of long videos, with a class of verb and one of noun.

    The columns are those of github.com/epic-kitchens/epic-kitchens-100-annotations.
    """
    lists = {}
    for role in ("train", "val", "test"):
        file = only(sources, role)
        if file is not None:
            rows = enumerate(read_table(file), start=1)
            lists[role] = [_epic_entry(file, *at, labelled=role != "test") for at in rows]
    heads = {"verb": 97, "noun": 300}  # EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv
    return Annotations(lists=lists, heads=heads)


def _epic_entry(file: Path, number: int, row: Mapping[str, str], *, labelled: bool) -> AnnotatedSample:
    with naming_entry(file, number):
        start, end = seconds_of(row["start_timestamp"]), seconds_of(row["stop_timestamp"])
        labels = (int(row["verb_class"]), int(row["noun_class"])) if labelled else ()
        return AnnotatedSample(
            (VideoRef(row["video_id"], start=start, end=end),), labels, frozenset({row["participant_id"]})
        )


def seconds_of(stamp: str) -> float:
    """Seconds of a time as `00:01:02.34`; ValueError where it is none."""
    found = _TIME.fullmatch(stamp.strip())
    if found is None:
        raise ValueError(f"'{stamp}' is no time as 00:01:02.34")
    whole = int(found["hours"]) * 3600 + int(found["minutes"]) * 60
    return round(whole + float(found["seconds"]), 6)


KINETICS: Final = Layout(
    name="kinetics",
    title="Kinetics-400/600/700",
    expects="CSV files with the columns label, youtube_id, time_start, time_end, split; videos "
    "ID_000010_000020.mp4 or ID.mp4, in class folders or not",
    needs={"tables": r".+\.csv"},
    holds=_is_kinetics,
    read=_read_kinetics,
)
EPIC: Final = Layout(
    name="epic-kitchens-100",
    title="EPIC-Kitchens-100",
    expects="EPIC_100_train.csv, EPIC_100_validation.csv; videos P01_01.MP4",
    needs={"train": r"EPIC_100_train\.csv", "val": r"EPIC_100_validation\.csv"},
    may_have={"test": r"EPIC_100_test_timestamps\.csv"},
    read=_read_epic,
)
