import csv
import json
from pathlib import Path

import pytest
from small_runs import called, json_of, refused, run

from everest.annotations.bout import UNSCORED, Bout
from everest.annotations.formats import read_annotations
from everest.annotations.labels import read_labels
from everest.annotations.matching import VideoFinder


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
    (bouts,) = read_labels([project(tmp_path, **intervals)]).bouts.values()
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
    assert shown.stderr.splitlines() == [
        "1 video, 1 bout",
        "  run: 1 bout, 1.0 s",
        "unscored in 1 video: 1.0 s",
    ]
    document = json_of("prepare annotations", file, "--videos", clip_files)
    assert document["unscored"] == {"videos": 1, "seconds": 1.0}
    run("prepare annotations", file, "--videos", clip_files, "-o", tmp_path / "back.eaf")
    assert unscored(read_annotations(tmp_path / "back.eaf")) == [(1.0, 2.0)]


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
