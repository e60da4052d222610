"""Several people who coded one video, and several subjects: whose bouts count."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import called, json_of, refused, run

from everest.errors import DataError
from everest_workflows.annotations.bout import UNSCORED, Bout
from everest_workflows.annotations.codings import BoutFilter, read_video_annotations
from everest_workflows.annotations.formats import read_annotations
from everest_workflows.annotations.matching import VideoFinder

Spans = list[tuple[float, float, str]]  # start, end, class

ANNA: Spans = [(0, 1, "walk"), (1, 2, "run")]
BEN: Spans = [(0, 1.25, "walk"), (1.25, 2, "run")]


def boris(folder: Path, codings: dict[str, Spans], *, variable: str | None = None) -> Path:
    """A project with an observation of clip0 for each observer."""
    document: dict[str, Any] = {
        "behaviors_conf": {
            str(number): {"code": name, "type": "State event"} for number, name in enumerate(("walk", "run"))
        },
        "observations": {
            (name if variable is None else f"o{number}"): {
                "file": {"1": ["C:/lab/clip0.mp4"]},
                "events": [[time, "", label, "", ""] for *times, label in spans for time in times],
                "independent_variables": {} if variable is None else {variable: name},
                "media_info": {"length": {"C:/lab/clip0.mp4": 2.0}},
            }
            for number, (name, spans) in enumerate(codings.items())
        },
    }
    (folder / "p.boris").write_text(json.dumps(document))
    return folder / "p.boris"


def table(folder: Path, name: str, columns: str, rows: list[tuple[Any, ...]]) -> Path:
    file = folder / name
    file.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]))
    return file


def files_of(kind: str, folder: Path, codings: dict[str, Spans]) -> list[Path]:
    """The codings as an annotation program or a lab keeps them."""
    rows = [(name, *span) for name, spans in codings.items() for span in spans]
    if kind == "files":
        return [
            table(folder, f"{name}.csv", "start,end,label,video", [(*span, "clip0.mp4") for span in spans])
            for name, spans in codings.items()
        ]
    if kind in ("observer", "Observer"):
        return [table(folder, "a.csv", f"{kind},start,end,label,video", [(*r, "clip0.mp4") for r in rows])]
    if kind == "aggregated":
        columns = "Observation id,Start (s),Stop (s),Behavior,Media file name"
        return [table(folder, "a.csv", columns, [(*row, "clip0.mp4") for row in rows])]
    if kind == "tabular":  # the program that wrote it names observers in a variable
        events = [
            ("day 1", name, time, label, status, "clip0.mp4")
            for name, start, end, label in rows
            for time, status in ((start, "START"), (end, "STOP"))
        ]
        columns = "Observation id,Observer,Time,Behavior,Status,Media file path"
        return [table(folder, "a.csv", columns, events)]
    return [boris(folder, codings, variable=None if kind == "boris" else "Observer")]


KINDS = ("boris", "variable", "aggregated", "tabular", "observer", "Observer", "files")


@pytest.mark.parametrize("kind", KINDS)
def test_two_observers_who_differ_are_refused_and_one_may_be_chosen(tmp_path, clip_files, kind):
    files = files_of(kind, tmp_path, {"anna": ANNA, "ben": BEN})
    for videos in ([], [str(clip_files / "clip0.mp4")]):
        with pytest.raises(DataError, match=r"0.mp4: 2 observations \(anna, ben\) differ in 'run'; choose"):
            read_video_annotations(files, videos)
    for name, expected in (("anna", ANNA), ("b*", BEN)):
        (bouts,) = read_video_annotations(files, bout_filter=BoutFilter(observers=[name])).bouts.values()
        assert [(bout.start, bout.end, bout.label) for bout in bouts] == expected
    with pytest.raises(DataError, match=r"--observer carl: not in .*, which has anna, ben"):
        read_video_annotations(files, bout_filter=BoutFilter(observers=["carl"]))
    if kind != "files":
        (file,) = files_of(kind, tmp_path, {"anna": ANNA})
        with pytest.raises(DataError, match=r"--observer carl: not in .*, which has anna"):
            read_video_annotations([file], bout_filter=BoutFilter(observers=["carl"]))


@pytest.mark.parametrize(
    ("other", "joined"),
    [
        (ANNA, 2),  # a copy
        ([(0.5, 0.75, "rear")], 3),  # other classes
        ([(2, 2.5, "run"), (3, 4, "walk")], 4),  # other times
        ([(0.5, 0.75, "walk")], None),
        ([(0, 1, "walk"), (1, 2, "run"), (1.5, 1.5, "walk")], 3),  # a further part of the same annotation
    ],
)
def test_codings_of_other_classes_or_times_are_joined(tmp_path: Path, other: Spans, joined: int | None):
    files = files_of("files", tmp_path, {"anna": ANNA, "ben": other})
    if joined is None:
        with pytest.raises(DataError, match="2 observations"):
            read_video_annotations(files)
    else:
        labels = read_video_annotations(files)
        assert len(labels.bouts["clip0.mp4"]) == joined
        assert labels.notices == ["joined: the codings of anna, ben; --observer keeps one"]


def test_other_subjects_complement_each_other_and_one_may_be_chosen(tmp_path: Path):
    columns = "video,start,end,label,observer,subject"
    rows = [("a.mp4", 0, 1, "walk", "anna", "m1"), ("a.mp4", 0.5, 2, "walk", "ben", "m2")]
    rows += [("b.mp4", 0, 1, "walk", "anna", "m2"), ("a.mp4", 3, 4, "unscored", "", "")]
    file = table(tmp_path, "a.csv", columns, rows)
    labels = read_video_annotations([file])
    assert labels.merged_subjects == ["m1", "m2"]
    assert labels.notices[-1] == "taken together, bouts of several subjects: m1, m2; --subject keeps one"
    only = read_video_annotations([file], bout_filter=BoutFilter(subject="m1")).bouts
    assert {video: [bout.label for bout in bouts] for video, bouts in only.items()} == {
        "a.mp4": ["walk", "unscored"]  # b.mp4 has no bout of it
    }
    with pytest.raises(DataError, match=r"--subject m3: not in .*, which has m1, m2"):
        read_video_annotations([file], bout_filter=BoutFilter(subject="m3"))
    table(tmp_path, "a.csv", columns, [rows[0], (*rows[1][:-1], "")])  # ben may mean m1
    with pytest.raises(DataError, match="2 observations"):
        read_video_annotations([file])


def test_two_corrections_differ_and_a_prediction_gives_way(tmp_path: Path):
    columns = "video,start,end,label,origin"
    rows = [("clip0.mp4", 0, 1, "walk", "curated"), ("clip0.mp4", 1, 2, "run", "automated")]
    first, second = table(tmp_path, "1.csv", columns, rows), table(tmp_path, "2.csv", columns, rows[1:])
    assert len(read_video_annotations([first, second]).bouts["clip0.mp4"]) == 2
    table(tmp_path, "2.csv", columns, [("clip0.mp4", 0, 1.5, "walk", "curated")])
    with pytest.raises(DataError, match=r"2 observations \(1, 2\) differ in 'walk'"):
        read_video_annotations([first, second])


def test_every_command_that_reads_labels_asks_whose_they_are(classifier_run, clip_files, tmp_path):
    file = boris(tmp_path, {"anna": ANNA, "ben": BEN})
    output = tmp_path / "w.csv"
    commands: dict[str, list[Any]] = {
        "annotations": ["prepare annotations", file, "--videos", clip_files],
        "windows": ["prepare windows", clip_files, "--seconds", 1, "--labels", file, "-o", output],
        "train": ["train", clip_files, "--annotations", file, "-o", tmp_path / "project", "--dry-run"],
        "timeline": ["timeline", clip_files / "clip0.mp4", "-c", classifier_run, "--truth", file],
    }
    for command in commands.values():
        assert "2 observations (anna, ben) differ in 'run'; choose" in refused(*command, code=4)
    found = json_of(*commands["annotations"], "--observer", "ben")
    assert found["classes"]["walk"] == {"bouts": 1, "seconds": 1.25}
    assert found["left_out"] == []
    called(*commands["windows"], "--observer", "anna", "--subject", "no subject")
    assert [row["label"] for row in csv.DictReader(output.read_text().splitlines())] == ["walk", "run"]
    assert "only 1 recording" in refused(*commands["train"], "--observer", "anna", code=4)
    for name, option in (("windows", "--labels"), ("train", "--annotations"), ("timeline", "--truth")):
        words = commands[name]
        place = words.index(option)
        without = [*words[:place], *words[place + 2 :], "--subject", "x"]
        assert option in refused(*without, code=2)


def frame_table(folder: Path, rows: dict[int, str]) -> Path:
    """DeepEthogram's labels of clip0: 32 frames, 16 a second."""
    file = folder / "clip0_labels.csv"
    lines = [f"{number},{row}" for number, row in rows.items()]
    file.write_text("\n".join([",background,run", *lines, ""]))
    return file


def project(folder: Path, **intervals: list) -> Path:
    """A BORIS project: an observation of clip0 for each interval, with `run` from 0.25 to 0.5 s."""
    observation = {
        "file": {"1": ["clip0.mp4"]},
        "events": [[time, "", "run", "", "", 0] for time in (0.25, 0.5)],
        "media_info": {"length": {"clip0.mp4": 2.0}},
    }
    document = {
        "behaviors_conf": {"0": {"code": "run", "type": "State event"}},
        "observations": {
            name: observation | {"observation time interval": interval}
            for name, interval in intervals.items()
        },
    }
    (folder / "a.boris").write_text(json.dumps(document))
    return folder / "a.boris"


def unscored(bouts: list[Bout]) -> list[tuple[float, float]]:
    return [(bout.start, bout.end) for bout in bouts if bout.label == UNSCORED]


@pytest.mark.parametrize("cells", ["-1,-1", ",", "nan,nan", "1,-1", None])
def test_rows_without_labels_are_unscored(tmp_path: Path, clip_files: Path, cells: str | None):
    rows = {number: row for number, row in enumerate(["0,1"] * 8 + [cells] * 16 + ["1,0"] * 8) if row}
    file = frame_table(tmp_path, rows)
    videos = VideoFinder([clip_files / "clip0.mp4"])
    assert unscored(read_annotations(file, videos=videos)) == [(0.5, 1.5)]
    output = tmp_path / "windows.csv"
    shown = called("prepare windows", clip_files, "--seconds", 0.25, "--labels", file, "-o", output)
    assert "left out, touch unscored time: 4 of 8 windows" in shown.stderr
    labels = [row["label"] for row in csv.DictReader(output.read_text().splitlines())]
    assert labels == ["run", "run", "background", "background"]


def test_a_table_that_ends_early_needs_the_rate(tmp_path: Path, clip_files: Path):
    file = frame_table(tmp_path, dict.fromkeys(range(16), "0,1"))
    videos = VideoFinder([clip_files / "clip0.mp4"])
    assert unscored(read_annotations(file, videos=videos, fps=16)) == [(1.0, 2.0)]
    message = refused("prepare annotations", file, "--videos", clip_files, code=4)
    assert "the video 32; is it of another video? If its last frames are not labeled, set --fps" in message


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ({"a": [0, 0]}, []),
        ({"a": [0, 1]}, [(1, 2)]),
        ({"a": [0.25, 0]}, [(0, 0.25)]),
        ({"a": [0, 1], "b": [0.5, 1.5]}, [(1.5, 2)]),
        ({"a": [0, 1], "b": [0, 0]}, []),
    ],
)
def test_time_outside_the_intervals_of_observations_is_unscored(tmp_path, intervals, expected):
    (bouts,) = read_video_annotations([project(tmp_path, **intervals)]).bouts.values()
    assert unscored(bouts) == expected


def test_time_outside_the_checked_windows_of_a_budget_is_unscored(tmp_path: Path, clip_files: Path):
    file, output = tmp_path / "checked.csv", tmp_path / "windows.csv"
    file.write_text(
        "video,start,end,label,note\nclip0.mp4,0,0.5,checked,\nclip0.mp4,0.25,0.5,run,slow\n"
        "clip0.mp4,1,1.5,checked,\nclip1.mp4,0,0.5,to check,\n"
    )
    shown = called("prepare windows", clip_files, "--seconds", 0.25, "--labels", file, "-o", output)
    assert "left out, touch unscored time: 12 of 16 windows" in shown.stderr
    rows = [(float(row["start"]), row["label"]) for row in csv.DictReader(output.read_text().splitlines())]
    assert rows == [(0, "background"), (0.25, "run"), (1, "background"), (1.25, "background")]
    assert {bout.label for bout in read_annotations(file)} == {"run", UNSCORED}


def test_an_interval_runs_on_over_queued_media(tmp_path: Path):
    file = project(tmp_path, a=[0, 3])
    document = json.loads(file.read_text())
    document["observations"]["a"] |= {
        "file": {"1": ["clip0.mp4", "clip1.mp4"]},
        "events": [[time, "", "run", "", "", 0] for time in (11.0, 12.5)],
        "time offset": 10.0,
        "media_info": {"length": {"clip0.mp4": 2.0, "clip1.mp4": 2.0}},
    }
    file.write_text(json.dumps(document))
    found = [(bout.video, bout.start, bout.end, bout.label) for bout in read_annotations(file)]
    assert found == [
        ("clip0.mp4", 1, 2, "run"),
        ("clip1.mp4", 0, 0.5, "run"),
        ("clip1.mp4", 1, 2, "unscored"),
    ]


def test_annotations_state_unscored_time_and_convert_it(tmp_path: Path, clip_files: Path):
    file = frame_table(tmp_path, {number: "0,1" if number < 16 else "-1,-1" for number in range(32)})
    shown = called("prepare annotations", file, "--videos", clip_files)
    lines = ["1 video, 1 bout", "  run: 1 bout, 1.0 s", "unscored in 1 video: 1.0 s"]
    assert shown.stderr.splitlines() == lines
    document = json_of("prepare annotations", file, "--videos", clip_files)
    assert document["unscored"] == {"videos": 1, "seconds": 1.0}
    convert = ("prepare annotations", file, "--videos", clip_files, "-o", tmp_path / "back.eaf")
    assert run(*convert) == f"{tmp_path / 'back.eaf'}\n"
    assert unscored(read_annotations(tmp_path / "back.eaf")) == [(1.0, 2.0)]
    assert "back.eaf: exists" in refused(*convert, code=2)


def test_unscored_time_does_not_count_in_scores(classifier_run: Path, clip_files: Path, tmp_path: Path):
    video, truth = clip_files / "clip0.mp4", tmp_path / "truth.csv"
    command = ["timeline", video, "-c", classifier_run, "--window", 0.5, "--truth", truth]
    label = json_of(*command[:-2], "-q")[0]["bouts"][0]["label"]
    truth.write_text(
        f"video,start,end,label\nclip0,0,0.5,{label}\nclip0,1,1.5,{label}\nclip0,1.5,2,unscored\n"
    )
    document = json_of(*command, "--json", "-q")
    assert document["unscored"] == 0.5
    assert document["frames"] == 24
    assert [each["name"] for each in document["classes"]].count("unscored") == 0
    assert "not scored: 0.5 s without labels" in called(*command).stderr
    truth.write_text("video,start,end,label\nclip0,0,2,unscored\n")
    assert "all time of the videos is unscored" in refused(*command, code=4)
