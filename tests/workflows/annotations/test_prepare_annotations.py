from pathlib import Path

import pytest
from small_runs import BOUTS, called, json_of, refused

from everest_workflows.annotations.formats import read_annotations


def test_the_summary_counts_videos_bouts_and_seconds(bouts: Path, clip_files: Path):
    shown = called("prepare annotations", bouts)
    assert shown.stdout == ""
    counts = ["3 videos, 4 bouts", "  walk: 3 bouts, 2.5 s", "  run: 1 bout, 1.0 s"]
    assert shown.stderr.splitlines() == counts
    document = json_of("prepare annotations", bouts, "--videos", clip_files)
    assert (document["videos"], document["bouts"], document["unmatched"]) == (2, 3, ["clip9.mp4"])
    assert document["classes"] == {"walk": {"bouts": 2, "seconds": 1.5}, "run": {"bouts": 1, "seconds": 1.0}}


def test_rows_without_a_label_are_counted(bouts: Path):
    bouts.write_text("video,start,end,label\nclip0.mp4,0,1,walk\nclip0.mp4,1,2,\n")
    assert called("prepare annotations", bouts).stderr.splitlines()[-1] == "left out: row without a label (1)"
    left_out = [{"reason": "row without a label", "count": 1}]
    assert json_of("prepare annotations", bouts)["left_out"] == left_out


def test_bouts_after_the_end_of_a_video_are_reported(bouts: Path, clip_files: Path):
    bouts.write_text("video,start,end,label\nclip0.mp4,1,9,walk\nclip0.mp4,0,1,walk\n")
    shown = called("prepare annotations", bouts, "--videos", clip_files)
    assert "clip0.mp4: 1 of 2 bouts end after the video; they may be of another file" in shown.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--to", "elan"], 2, "--to elan: needs --output, the file to write"),
        (["-o", "x.json"], 2, "end its name in .csv, .boris, .eaf, .srt, .vtt, or add --to"),
        (["-o", "bouts.csv", "--overwrite"], 2, "is an input of this command"),
        (["--to", "csv", "-o", "bouts.csv"], 2, "is an input of this command"),
        (["--videos", "nowhere"], 4, "nowhere: no such video or folder"),
        (["--videos", "OTHER"], 4, "names C:\\lab\\clip0.mp4, clip1, clip9.mp4; the videos are x.mp4"),
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


def test_a_damaged_video_is_named_and_its_bouts_are_written(bouts: Path, tmp_path: Path):
    videos, output = tmp_path / "videos", tmp_path / "out.csv"
    videos.mkdir()
    (videos / "clip0.mp4").write_bytes(b"no video")
    shown = called("prepare annotations", bouts, "--videos", videos, "-o", output)
    assert "its bouts were not checked against its length" in shown.stderr
    assert [each.video for each in read_annotations(output)] == [str(videos / "clip0.mp4")] * 2
