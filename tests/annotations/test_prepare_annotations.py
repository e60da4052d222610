import json
from pathlib import Path

import pytest
from small_runs import called, json_of, refused, run

from everest.annotations.formats import read_annotations
from everest.annotations.kinds import KINDS

# 2 s each; names as another computer wrote them.
BOUTS = """\
video,start,end,label
C:\\lab\\clip0.mp4,0,1,walk
C:\\lab\\clip0.mp4,1,2,run
clip1,0.5,1,walk
clip9.mp4,0,1,walk
"""


@pytest.fixture
def bouts(tmp_path: Path) -> Path:
    (tmp_path / "bouts.csv").write_text(BOUTS)
    return tmp_path / "bouts.csv"


def test_the_summary_counts_videos_bouts_and_seconds(bouts: Path, clip_files: Path):
    shown = called("prepare annotations", bouts)
    assert shown.stdout == ""
    assert shown.stderr.splitlines() == [
        "3 videos, 4 bouts",
        "  walk: 3 bouts, 2.5 s",
        "  run: 1 bout, 1.0 s",
    ]
    document = json_of("prepare annotations", bouts, "--videos", clip_files, "-q")
    assert (document["videos"], document["bouts"], document["unmatched"]) == (2, 3, ["clip9.mp4"])
    assert document["classes"] == {"walk": {"bouts": 2, "seconds": 1.5}, "run": {"bouts": 1, "seconds": 1.0}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_and_read_again(bouts: Path, clip_files: Path, tmp_path: Path, kind: str):
    output = tmp_path / "converted"
    files = run(
        "prepare annotations", bouts, "--videos", clip_files, "--to", kind, "-o", output, "-q"
    ).splitlines()
    assert all(Path(file).is_relative_to(output) for file in files)
    found = [each for file in files for each in read_annotations(Path(file), kind=kind, fps=16)]
    spans = {(Path(each.video).stem, each.start, each.end, each.label) for each in found}
    assert spans == {("clip0", 0, 1, "walk"), ("clip0", 1, 2, "run"), ("clip1", 0.5, 1, "walk")}
    assert refused("prepare annotations", bouts, "--videos", clip_files, "--to", kind, "-o", output, code=2)


def test_frames_are_counted_by_a_rate_too(bouts: Path, tmp_path: Path):
    options = ["--to", "label-studio", "-o", tmp_path / "tasks.json", "-q"]
    assert "the times of C:\\lab\\clip0.mp4" in refused("prepare annotations", bouts, *options, code=4)
    run("prepare annotations", bouts, *options, "--fps", 10)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks[0]["data"] == {"video": "C:\\lab\\clip0.mp4", "fps": 10}
    assert tasks[0]["annotations"][0]["result"][1]["value"]["ranges"] == [{"start": 11, "end": 20}]


def test_bouts_after_the_end_of_a_video_are_reported(bouts: Path, clip_files: Path):
    bouts.write_text("video,start,end,label\nclip0.mp4,1,9,walk\nclip0.mp4,0,1,walk\n")
    shown = called("prepare annotations", bouts, "--videos", clip_files)
    assert "clip0.mp4: 1 of 2 bouts end after the video; they may be of another file" in shown.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--to", "elan"], 2, "--output: name the file to write"),
        (["-o", "x.csv"], 2, "nothing to write; add --to"),
        (["--to", "csv", "-o", "bouts.csv", "--overwrite"], 2, "is an input of this command"),
        (["--to", "csv", "-o", "bouts.csv"], 2, "is an input of this command"),
        (["--kind", "boris"], 4, "cannot be read as boris"),
        (["--videos", "nowhere"], 4, "nowhere: no such video or folder"),
        (["--videos", "OTHER"], 4, "no annotated video is in --videos: C:\\lab\\clip0.mp4, clip1, clip9"),
    ],
)
def test_wrong_input_is_named(bouts, clip_files, tmp_path, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VIDEOS").symlink_to(clip_files)
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "x.mp4").symlink_to(clip_files / "clip0.mp4")
    assert message in refused("prepare annotations", bouts, *options, code=code)
    assert bouts.read_text() == BOUTS
    assert not (tmp_path / "x.csv").exists()


def test_a_damaged_video_is_named_and_stops_only_what_needs_its_times(bouts: Path, tmp_path: Path):
    videos, output = tmp_path / "videos", tmp_path / "out.csv"
    videos.mkdir()
    (videos / "clip0.mp4").write_bytes(b"no video")
    options = [bouts, "--videos", videos, "-o", output, "--to"]
    assert "whether its bouts fit in it is not known" in called("prepare annotations", *options, "csv").stderr
    assert [each.video for each in read_annotations(output)] == [str(videos / "clip0.mp4")] * 2
    message = refused("prepare annotations", *options, "frames", "--overwrite", code=4)
    assert message.startswith(f"error: {videos / 'clip0.mp4'}: ")


@pytest.mark.parametrize(
    ("end", "to", "message"),
    [
        *(("1e308", kind, "bouts.csv: cannot be read as csv: line 2: ") for kind in KINDS),
        ("1e14", "frames", "seconds is no interval of a video"),
        ("9e6", "frames", "a.mp4: its last bout ends at 9000000 s, and at 10 frames a second"),
    ],
)
def test_an_end_that_no_video_has_is_refused(bouts: Path, tmp_path: Path, end: str, to: str, message: str):
    bouts.write_text(f"video,start,end,label\na.mp4,0,{end},walk\n")
    options = ["--to", to, "--fps", 10, "-o", tmp_path / "new"]
    assert message in refused("prepare annotations", bouts, *options, code=4)
