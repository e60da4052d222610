"""Data sets whose videos are segments of longer ones: Kinetics, EPIC-Kitchens-100, FineGym."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from everest.errors import DataError
from everest.lists.text import read_lines, shown
from everest.prepare.layout import (
    AnnotatedSample,
    Annotations,
    Layout,
    Sources,
    VideoRef,
    naming_entry,
    needed,
    only,
    read_table,
    unique_names,
)
from everest.video.folders import as_data_error

_SPLITS: Final = {"train": "train", "validate": "val", "validation": "val", "val": "val", "test": "test"}
_TIME: Final = re.compile(r"(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(\.\d+)?)")
# The name of an element: video, seconds of the event in the video, seconds of the element in the event
# (sdolivia.github.io/FineGym; YouTube ids may contain underscores).
_ELEMENT: Final = re.compile(
    r"(?P<video>.+)_E_(?P<event>\d+)_(?P<event_end>\d+)_A_(?P<start>\d+)_(?P<end>\d+)"
)


def _is_kinetics(file: Path) -> bool:
    with as_data_error(file), file.open(encoding="utf-8-sig", errors="replace") as text:
        return "youtube_id" in text.readline(1000).strip().split(",")


def _read_kinetics(sources: Sources) -> Annotations:
    """Columns `label, youtube_id, time_start, time_end, split`; labels of tests may be secret.

    A file is named ID_000010_000020 by its seconds, or ID if the ID belongs to one sample only.
    """
    rows: dict[str, list[tuple[Path, int, Mapping[str, str]]]] = {}
    for file in sources["tables"]:
        for number, row in enumerate(read_table(file), start=1):
            name = row.get("split") or next((word for word in _SPLITS if word in file.stem.lower()), "")
            if name not in _SPLITS:
                raise DataError(f"{file}: entry {number}: split '{name}' is none of {', '.join(_SPLITS)}")
            rows.setdefault(_SPLITS[name], []).append((file, number, row))
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
    lists: dict[str, list[AnnotatedSample]] = {}
    entries = [(split, *entry) for split in ("train", "val", "test") for entry in rows.get(split, ())]
    for split, file, number, row in entries:
        with naming_entry(file, number):
            video, label = row["youtube_id"], row.get("label")
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            refs = [VideoRef(f"{video}_{start:06d}_{end:06d}")]
            if times_listed[video] == 1:
                refs.append(VideoRef(video))
            if label and label not in label_of:
                raise ValueError(f"'{label}' is no class of the training list")
            labels = (label_of[label],) if label else ()
            folders = {split, label, label.replace(" ", "_")} if label else {split}
            sample = AnnotatedSample(tuple(refs), labels, frozenset(folders))
            lists.setdefault(split, []).append(sample)
    return Annotations(lists=lists, class_names=names)


def _read_epic(sources: Sources) -> Annotations:
    """Segments of long videos, with a verb class and a noun class.

    For the columns see github.com/epic-kitchens/epic-kitchens-100-annotations.
    """
    lists: dict[str, list[AnnotatedSample]] = {}
    for role in ("train", "val", "test"):
        file = only(sources, role)
        if file is None:
            continue
        lists[role] = []
        for number, row in enumerate(read_table(file), start=1):
            with naming_entry(file, number):
                start, end = seconds_of(row["start_timestamp"]), seconds_of(row["stop_timestamp"])
                labels = (int(row["verb_class"]), int(row["noun_class"])) if role != "test" else ()
                ref = VideoRef(row["video_id"], start=start, end=end)
                lists[role].append(AnnotatedSample((ref,), labels, frozenset({row["participant_id"]})))
    heads = {"verb": 97, "noun": 300}  # EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv
    return Annotations(lists=lists, heads=heads)


def seconds_of(stamp: str) -> float:
    """The seconds of a time such as `00:01:02.34`.

    Raises:
        ValueError: it is not a time.
    """
    match = _TIME.fullmatch(stamp.strip())
    if match is None:
        raise ValueError(f"'{stamp}' is no time as 00:01:02.34")
    whole = int(match["hours"]) * 3600 + int(match["minutes"]) * 60
    return round(whole + float(match["seconds"]), 6)


def _read_finegym(sources: Sources, *, classes: int) -> Annotations:
    """Lines `VIDEO_E_start_end_A_start_end label`, in seconds; files are elements, events or whole videos."""
    lists: dict[str, list[AnnotatedSample]] = {"train": [], "val": []}
    for role, samples in lists.items():
        file = needed(sources, role)
        for number, line in read_lines(file):
            name, _, label = line.strip().partition(" ")
            match = _ELEMENT.fullmatch(name)
            if match is None or not label.strip().isdecimal():
                raise DataError(
                    f"{file}:{number}: a line is `VIDEO_E_start_end_A_start_end label`, this is {shown(line)}"
                )
            video, event = match["video"], int(match["event"])
            start = int(match["start"])
            end = max(int(match["end"]), start + 1)  # of elements shorter than a second, both are equal
            refs = (
                VideoRef(name),
                VideoRef(f"{video}_E_{match['event']}_{match['event_end']}", start=start, end=end),
                VideoRef(video, start=event + start, end=event + end),
            )
            samples.append(AnnotatedSample(refs, (int(label),)))
    names: list[str] = []  # from lines `Clabel: 0; set: 11; Glabel: 3; (VT) name`
    categories = only(sources, "classes")
    for number, line in read_lines(categories) if categories else ():
        fields = line.split(";", maxsplit=3)
        if len(fields) < 4 or fields[0].split(":")[-1].strip() != str(len(names)):
            raise DataError(
                f"{categories}:{number}: a line is `Clabel: {len(names)}; set: N; Glabel: N; name`, "
                f"this is {shown(line)}"
            )
        names.append(fields[3].strip())
    settings = {"num_classes": len(names) or classes}
    return Annotations(lists=lists, class_names=unique_names(names), settings=settings)


def _finegym(classes: int) -> Layout:
    return Layout(
        name=f"finegym{classes}",
        title=f"FineGym{classes}",
        expects=f"gym{classes}_train_element*.txt, gym{classes}_val_element*.txt (names: "
        f"gym{classes}_categories.txt); videos ID.mp4, ID_E_start_end.mp4 or ID_E_start_end_A_start_end.mp4",
        needs={
            "train": rf"gym{classes}_train_element.*\.txt",
            "val": rf"gym{classes}_val_element.*\.txt",
        },
        may_have={"classes": rf"gym{classes}_categories\.txt"},
        read=partial(_read_finegym, classes=classes),
    )


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
FINEGYM288: Final = _finegym(288)
FINEGYM99: Final = _finegym(99)
