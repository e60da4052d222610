from pathlib import Path

import pytest
from small_runs import json_of, refused, run

from everest.annotations.formats import read_annotations, recognize
from everest.annotations.times import VideoTimes
from everest.inference.bouts import automated_bouts

OPTIONS = ["--timeline", "--window", 0.5, "--step", 0.25, "-q"]


@pytest.fixture(scope="module")
def timeline(classifier_run: Path, clip_files: Path) -> list[dict]:
    videos = [clip_files / "clip0.mp4", clip_files / "clip1.mp4"]
    return json_of("predict", *videos, "-c", classifier_run, *OPTIONS)


@pytest.mark.parametrize("kind", ["csv", "elan", "frames", "srt", "boris"])
def test_every_kind_has_the_bouts_of_the_timeline(timeline, classifier_run, clip_files, tmp_path, kind):
    videos = [clip_files / "clip0.mp4", clip_files / "clip1.mp4"]
    output = tmp_path / "out"
    files = run("predict", *videos, "-c", classifier_run, *OPTIONS, "--to", kind, "-o", output).splitlines()
    assert len(files) == (2 if kind in ("elan", "frames", "vtt", "srt") else 1)
    found = [each for file in files for each in read_annotations(Path(file), fps=16)]
    assert {recognize(Path(file)) for file in files} == {kind}
    times = VideoTimes.at_rate(16, 32)
    expected = [
        (Path(row["video"]).stem, bout["label"], bout["start_frame"], bout["end_frame"])
        for row in timeline
        for bout in row["bouts"]
        if bout["label"] is not None
    ]
    assert expected
    frames = [(Path(each.video).stem, each.label, *times.span(each)) for each in found]
    assert sorted(frames) == sorted(expected)
    if kind not in ("srt", "frames"):
        assert {each.origin for each in found} == {"automated"}


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("boris", r'"code": "CLASS"'),
        ("elan", 'TIER_ID="CLASS (automated)"'),
        ("frames", ",background,0,1"),
        ("activitynet", '"nodeName": "CLASS"'),
    ],
)
def test_classes_without_a_bout_are_named(classifier_run, clip_files, tmp_path, kind, named):
    options = ["--timeline", "--background", 1, "-q", "--to", kind, "-o", tmp_path / "file"]
    run("predict", clip_files / "clip0.mp4", "-c", classifier_run, *options)
    text = (tmp_path / "file").read_text()
    assert all(named.replace("CLASS", name) in text for name in ("0", "1"))
    assert read_annotations(tmp_path / "file", kind=kind, fps=16) == []


def test_a_damaged_video_is_left_out(classifier_run: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    videos = [clip_files / "clip0.mp4", tmp_path / "text.mp4"]
    options = ["-c", classifier_run, "--timeline", "-q", "--to", "csv", "-o", tmp_path / "a.csv"]
    run("predict", *videos, *options, code=4)
    assert {each.video for each in read_annotations(tmp_path / "a.csv")} == {str(videos[0])}
    options = [*options[:-3], "elan", "-o", tmp_path / "files"]
    assert run("predict", *videos, *options, code=4).split() == [str(tmp_path / "files" / "clip0.eaf")]
    assert run("predict", videos[1], *options[:-1], tmp_path / "none.eaf", code=4) == ""


def test_bouts_of_heads_have_the_name_of_the_head():
    bout = {"start": 0, "end": 1.5, "label": "cut", "index": 1, "probability": 0.5}
    found = automated_bouts("a.mp4", {"verb": [bout, {**bout, "label": None}], "noun": [bout]})
    spans = [(each.label, each.start, each.end) for each in found]
    assert spans == [("verb cut", 0, 1.5), ("noun cut", 0, 1.5)]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--to", "csv", "-o", "a.csv"], 2, "--to belongs to --timeline"),
        (["--timeline", "--to", "csv"], 2, "--to csv: needs --output"),
        (["--timeline", "--to", "csv", "-o", "a.csv", "--json"], 2, "no --format or --json"),
        (["--timeline", "--to", "elam", "-o", "a.csv"], 2, "'elam' is not one of"),
        (["--timeline", "--to", "csv", "-o", "old.csv"], 2, "exists; choose another name"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    classifier_run: Path,
    clip_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list,
    code: int,
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("old")
    assert message in refused("predict", clip_files / "clip0.mp4", "-c", classifier_run, *options, code=code)
    assert not (tmp_path / "a.csv").exists()
