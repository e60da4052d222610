"""Data sets whose annotations are text files with one video per line: UCF101, HMDB51, FineGym."""

from __future__ import annotations

import re
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
    needed,
    only,
    unique_names,
)

# The name of an element: video, seconds of the event in the video, seconds of the element in the event
# (sdolivia.github.io/FineGym; YouTube ids may contain underscores).
_ELEMENT: Final = re.compile(
    r"(?P<video>.+)_E_(?P<event>\d+)_(?P<event_end>\d+)_A_(?P<start>\d+)_(?P<end>\d+)"
)


def _read_ucf101(sources: Sources) -> Annotations:
    """`classInd.txt` has `number name` from 1, the lists `Class/file.avi number`, test lists no number.

    The class is therefore taken from the folder.
    """
    classes = needed(sources, "classes")
    numbers = {}
    for number, line in read_lines(classes):
        first, _, name = line.strip().partition(" ")
        if not (first.isdecimal() and name):
            raise DataError(f"{classes}:{number}: a line is `number name`, this is {shown(line)}")
        numbers[name.strip()] = int(first)
    names = sorted(numbers, key=lambda name: numbers[name])
    if sorted(numbers.values()) != list(range(1, len(names) + 1)):
        raise DataError(f"{classes}: its numbers are not 1 to {len(names)}")
    lists: dict[str, list[AnnotatedSample]] = {"train": [], "test": []}
    for role, samples in lists.items():
        file = needed(sources, role)
        for number, line in read_lines(file):
            folder, slash, name = re.sub(r"\s+\d+\s*$", "", line.strip()).rpartition("/")
            if not slash or folder not in numbers:
                raise DataError(f"{file}:{number}: no class of the data set in {shown(line)}")
            ref = VideoRef(Path(name).stem)
            samples.append(AnnotatedSample((ref,), (numbers[folder] - 1,), frozenset({folder})))
    return Annotations(lists=lists, class_names=tuple(names))


def _read_hmdb51(sources: Sources) -> Annotations:
    """A file per class, lines `file.avi N`: 1 is training, 2 is test, 0 is unused (split_readme.txt)."""
    class_of = {file: re.sub(r"_test_split\d\.txt$", "", file.name) for file in sources["splits"]}
    names = sorted(set(class_of.values()))
    if len(names) < len(class_of):
        raise DataError(
            f"{sources['splits'][0].parent}: several files of a class are below it; name the folder of one "
            "set of lists by --annotations"
        )
    lists: dict[str, list[AnnotatedSample]] = {"train": [], "test": []}
    for file, name in sorted(class_of.items(), key=lambda pair: pair[1]):
        for number, line in read_lines(file):
            video, _, use = line.strip().rpartition(" ")
            if use not in ("0", "1", "2") or not video:
                raise DataError(f"{file}:{number}: a line is `file.avi 0|1|2`, this is {shown(line)}")
            if use != "0":
                ref = VideoRef(Path(video.strip()).stem)
                sample = AnnotatedSample((ref,), (names.index(name),), frozenset({name}))
                lists["train" if use == "1" else "test"].append(sample)
    return Annotations(lists=lists, class_names=tuple(names))


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


UCF101: Final = Layout(
    name="ucf101",
    title="UCF101",
    expects="classInd.txt, trainlist01.txt, testlist01.txt (of ucfTrainTestlist); videos "
    "Class/v_Class_g01_c01.avi",
    needs={"classes": r"classInd\.txt", "train": r"trainlist0{split}\.txt", "test": r"testlist0{split}\.txt"},
    read=_read_ucf101,
)
HMDB51: Final = Layout(
    name="hmdb51",
    title="HMDB51",
    expects="CLASS_test_split1.txt of every class (of testTrainMulti_7030_splits); videos CLASS/NAME.avi",
    needs={"splits": r".+_test_split{split}\.txt"},
    read=_read_hmdb51,
)
FINEGYM288: Final = _finegym(288)
FINEGYM99: Final = _finegym(99)
