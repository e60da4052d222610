"""Data sets with a file for each sample: UCF101, HMDB51, Something-Something V2, Ego4D OSCC, Diving48."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from everest.errors import DataError, did_you_mean
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
    read_json,
    unique_names,
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


def _records(file: Path, document: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list, with their numbers from 1."""
    if not isinstance(document, list) or not all(isinstance(record, dict) for record in document):
        raise DataError(f"{file}: a list of objects is expected")
    return enumerate(document, start=1)


def _read_ssv2(sources: Sources) -> Annotations:
    """The label is the `template` without brackets; test labels are in `test-answers.csv`, if it is there."""
    classes = needed(sources, "classes")
    document = read_json(classes)
    with naming_entry(classes, 1):
        label_of = {str(name): int(label) for name, label in dict(document).items()}
    if sorted(label_of.values()) != list(range(len(label_of))):
        raise DataError(f"{classes}: its labels are not 0 to {len(label_of) - 1}")
    lists: dict[str, list[AnnotatedSample]] = {}
    for role in ("train", "val", "test"):
        file = only(sources, role)
        if file is None:
            continue
        known, field = (label_of, "template")
        if role == "test":
            known, field = _answers(only(sources, "answers"), label_of), "id"
        lists[role] = []
        for number, record in _records(file, read_json(file)):
            with naming_entry(file, number):
                ref, key = VideoRef(str(record["id"])), str(record[field]).replace("[", "").replace("]", "")
                if known is not None and key not in known:
                    raise ValueError(f"unknown label '{key}'{did_you_mean(key, known)}")
                lists[role].append(AnnotatedSample((ref,), () if known is None else (known[key],)))
    names = sorted(label_of, key=lambda name: label_of[name])
    # "Pushing something from left to right" is another class when mirrored.
    return Annotations(lists=lists, class_names=tuple(names), settings={"flip": False})


def _answers(file: Path | None, label_of: Mapping[str, int]) -> dict[str, int] | None:
    """The label of each test video by its id; None without the file."""
    if file is None:
        return None
    answers = {}
    for number, line in read_lines(file):
        (fields,) = csv.reader([line.strip()], delimiter=";")
        if len(fields) != 2 or fields[1] not in label_of:
            raise DataError(f"{file}:{number}: a line is `id;label`, this is {shown(line)}")
        answers[fields[0]] = label_of[fields[1]]
    return answers


def _read_oscc(sources: Sources) -> Annotations:
    """`clips` with `state_change` and times in the video (`parent_*`) and in the annotated clip (`clip_*`).

    The field names are from fho_oscc-pnr_*.json (ego4d-data.org, annotation schemas). Files are full videos,
    canonical clips, or pieces cut by a program and named by their `unique_id`.
    """
    lists: dict[str, list[AnnotatedSample]] = {}
    for role in ("train", "val", "test"):
        file = only(sources, role)
        if file is None:
            continue
        document = read_json(file)
        clips = document.get("clips") if isinstance(document, dict) else document
        lists[role] = []
        for number, record in _records(file, clips):
            with naming_entry(file, number):
                refs = [VideoRef(str(record["unique_id"]))]
                if record.get("clip_uid"):  # test records have none
                    start, end = float(record["clip_start_sec"]), float(record["clip_end_sec"])
                    refs.append(VideoRef(str(record["clip_uid"]), start=start, end=end))
                start, end = float(record["parent_start_sec"]), float(record["parent_end_sec"])
                refs.append(VideoRef(str(record["video_uid"]), start=start, end=end))
                labels = () if role == "test" else (int(bool(record["state_change"])),)
                lists[role].append(AnnotatedSample(tuple(refs), labels))
    return Annotations(lists=lists, class_names=("no state change", "state change"))


def _read_diving48(sources: Sources) -> Annotations:
    """Objects `vid_name, label, start_frame, end_frame`; the vocabulary has the parts of each dive."""
    lists: dict[str, list[AnnotatedSample]] = {"train": [], "test": []}
    for role, samples in lists.items():
        file = needed(sources, role)
        for number, record in _records(file, read_json(file)):
            with naming_entry(file, number):
                first, end = int(record["start_frame"]), int(record["end_frame"])
                ref = VideoRef(str(record["vid_name"]), start_frame=first, end_frame=end)
                samples.append(AnnotatedSample((ref,), (int(record["label"]),)))
    vocabulary = only(sources, "classes")
    names: tuple[str, ...] = ()
    if vocabulary is not None:
        dives = read_json(vocabulary)
        with naming_entry(vocabulary, 1):
            names = unique_names([dive if isinstance(dive, str) else " ".join(dive) for dive in dives])
    return Annotations(lists=lists, class_names=names, settings={"num_classes": 48})


_SSV2 = r"(something-something-v2-)?"  # the files that Qualcomm publishes since 2022 have no prefix
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
SSV2: Final = Layout(
    name="ssv2",
    title="Something-Something V2",
    expects="labels.json, train.json, validation.json (or something-something-v2-*.json), test.json and "
    "test-answers.csv if there; videos NUMBER.webm",
    needs={
        "classes": _SSV2 + r"labels\.json",
        "train": _SSV2 + r"train\.json",
        "val": _SSV2 + r"validation\.json",
    },
    may_have={"test": _SSV2 + r"test\.json", "answers": r"test-answers\.csv"},
    read=_read_ssv2,
)
OSCC: Final = Layout(
    name="oscc",
    title="Ego4D OSCC",
    expects="fho_oscc-pnr_train.json, fho_oscc-pnr_val.json; videos VIDEO_UID.mp4, CLIP_UID.mp4 or "
    "UNIQUE_ID.mp4",
    needs={"train": r"fho_oscc-pnr_train\.json", "val": r"fho_oscc-pnr_val\.json"},
    may_have={"test": r"fho_oscc-pnr_test_unannotated\.json"},
    read=_read_oscc,
)
DIVING48: Final = Layout(
    name="diving48",
    title="Diving48",
    expects="Diving48_V2_train.json, Diving48_V2_test.json (names: Diving48_vocab.json); videos VID_NAME.mp4",
    needs={"train": r"Diving48_V2_train\.json", "test": r"Diving48_V2_test\.json"},
    may_have={"classes": r"Diving48_vocab\.json"},
    read=_read_diving48,
)
