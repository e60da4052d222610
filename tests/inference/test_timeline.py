import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import with_hole
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import json_of, refused, run

from everest.data.views import EvalViews
from everest.inference.predictions import window_clips, windows_of
from everest.lists.sample import Sample
from everest.video import backends
from everest_cli.prediction_text import as_csv, as_srt, as_table

SECONDS = 2.0  # of a clip file: 32 frames, 16 a second
VIEWS = EvalViews(frames=4, stride=2, size=(32, 32), clips=2, crops=3, sampling="dense")


@given(window=st.floats(0.07, 3), step=st.floats(0.05, 3))
@settings(max_examples=60)
def test_windows_follow_each_other_and_the_last_ends_with_the_video(clip_files, window, step):
    found = windows_of(Sample(path=str(clip_files / "clip0.mp4")), VIEWS, window=window, step=step)
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(SECONDS)
    for place, one in enumerate(found[:-1]):
        assert one.start == pytest.approx(place * step)
        assert one.end == pytest.approx(one.start + window)
    if step <= window:
        seen = {frame for one in found for frame in range(one.first, one.first + one.length)}
        assert seen == set(range(32))


def test_a_window_of_a_clip_is_the_default(clip_files: Path):
    found = windows_of(Sample(path=str(clip_files / "clip0.mp4")), VIEWS, window=None, step=None)
    assert [(one.start, one.end, one.first, one.length) for one in found] == [
        (0.5 * place, 0.5 * place + 0.5, 8 * place, 8) for place in range(4)
    ]


def test_a_segment_is_a_video_of_its_own(clip_files: Path):
    sample = Sample(path=str(clip_files / "clip0.mp4"), start=0.5, end=1.75)
    found = windows_of(sample, VIEWS, window=0.5, step=0.5)
    assert [(one.start, one.first, one.length) for one in found] == [(0.5, 8, 8), (1.0, 16, 8), (1.25, 20, 8)]


@pytest.mark.parametrize(("window", "step"), [(0.5, 0.0625), (1.0, 0.3), (0.25, 0.5), (5.0, 1.0)])
def test_a_window_is_seen_as_the_same_segment_and_every_frame_decoded_once(
    clip_files: Path, monkeypatch: pytest.MonkeyPatch, window: float, step: float
):
    path = clip_files / "clip3.mp4"
    windows = windows_of(Sample(path=str(path)), VIEWS, window=window, step=step)
    shown = []
    decode_frames = backends.decode_frames

    def counting(*arguments, **options):
        for frame in decode_frames(*arguments, **options):
            shown.append(frame.frame.pts)
            yield frame

    with monkeypatch.context() as counted:
        counted.setattr(backends, "decode_frames", counting)
        clips = list(window_clips(path, windows, VIEWS))
    assert len(shown) == len(set(shown)) <= 32
    for one, clip in zip(windows, clips, strict=True):
        alone = Sample(path=str(path), start=one.start, end=one.end)
        assert torch.equal(clip, VIEWS(alone, np.random.default_rng(), "auto").frames)


def test_the_classes_of_a_window_are_those_of_the_segment(classifier_run, clip_files, tmp_path):
    video = clip_files / "clip1.mp4"
    options = ["-c", classifier_run, "--timeline", "--window", 0.75, "--step", 0.25]
    (row,) = json_of("predict", video, *options)
    segments = [f"{video},{one['start']},{one['end']}" for one in row["windows"]]
    (tmp_path / "list.csv").write_text("\n".join(["path,start,end", *segments]))
    alone = json_of("predict", tmp_path / "list.csv", "-c", classifier_run, "--clips", 1, "--crops", 1)
    (at_once,) = json_of("predict", video, *options, "--batch", 4)
    assert len(row["windows"]) == 6
    for one, other, batched in zip(row["windows"], alone, at_once["windows"], strict=True):
        assert one["predictions"] == other["predictions"]
        for found, expected in zip(batched["predictions"], one["predictions"], strict=True):
            assert found["label"] == expected["label"]
            assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def test_windows_around_the_damage_are_reported(classifier_run: Path, clip_files: Path, tmp_path: Path):
    with_hole(clip_files / "clip2.mp4", 0.7, tmp_path / "hole.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    options = ["-c", classifier_run, "--timeline", "--step", 0.25]
    expected = json_of("predict", clip_files / "clip2.mp4", *options)[0]["windows"]
    videos = [tmp_path / "hole.mp4", tmp_path / "text.mp4"]
    for batch in (1, 3):
        damaged, text = json_of("predict", *videos, *options, "--batch", batch, code=4)
        assert re.fullmatch(r"damaged: no intact frames from \d\.\d\d to \d\.\d\d s", damaged["error"])
        starts = [one["start"] for one in damaged["windows"]]
        assert set(starts) < {one["start"] for one in expected}
        assert 0 < len(starts) < len(expected)
        no_windows = {"windows": [], "bouts": [], "error": "not a video file"}
        assert text == {"video": str(tmp_path / "text.mp4"), **no_windows}
        assert damaged["bouts"][-1]["end"] == damaged["windows"][-1]["end"]


def test_every_format_contains_the_same(classifier_run: Path, clip_files: Path, tmp_path: Path):
    video = clip_files / "clip1.mp4"
    options = ["-c", classifier_run, "--timeline", "--window", 1, "--step", 0.5, "--top", 2, "-q"]
    (row,) = json.loads(run("predict", video, *options, "--format", "json"))
    expected = [
        (one["start"], one["end"], rank, found["label"], found["probability"])
        for one in row["windows"]
        for rank, found in enumerate(one["predictions"], start=1)
    ]
    table, kinds = tmp_path / "windows.csv", (float, float, int, str, float)
    assert run("predict", video, *options, "-o", table).strip() == str(table)
    lines = [
        [line[name] for name in ("start", "end", "rank", "label", "probability")]
        for line in csv.DictReader(table.read_text().splitlines())
    ]
    assert [tuple(kind(cell) for kind, cell in zip(kinds, line, strict=True)) for line in lines] == expected
    cues = run("predict", video, *options, "--format", "srt").split("\n\n")
    assert [cue.split("\n")[:2] for cue in cues] == [
        ["1", "00:00:00,000 --> 00:00:00,500"],
        ["2", "00:00:00,500 --> 00:00:01,000"],
        ["3", "00:00:01,000 --> 00:00:02,000"],
    ]
    for cue, one in zip(cues, row["windows"], strict=True):
        assert [line.split()[0] for line in cue.split("\n")[2:4]] == [p["label"] for p in one["predictions"]]
    first, *others = run("predict", video, *options).splitlines()
    assert (first, len(others)) == (str(video), 3)


def test_several_heads_and_errors_have_their_columns():
    found = [{"label": "cut", "index": 3, "probability": 0.75}]
    predictions = [
        {"video": "a, b.mp4", "heads": {"verb": found, "noun": found}},
        {"video": "c.mp4", "error": "empty file"},
    ]
    assert list(csv.reader(io.StringIO(as_csv(predictions)))) == [
        ["video", "head", "rank", "label", "index", "probability", "error"],
        *(["a, b.mp4", head, "1", "cut", "3", "0.75", ""] for head in ("verb", "noun")),
        ["c.mp4", *[""] * 5, "empty file"],
    ]
    assert as_table(predictions) == (
        "a, b.mp4\n   75.0%  verb cut\n   75.0%  noun cut\nc.mp4\n  empty file\n"
    )


def test_subtitles_count_hours():
    found = [{"label": "serve", "index": 0, "probability": 0.5}]
    windows = [{"start": 3725.5, "end": 3727.04, "predictions": found}]
    assert as_srt([{"video": "a.mp4", "windows": windows}]) == "1\n01:02:05,500 --> 01:02:07,040\nserve 50%\n"


def test_options_that_do_not_go_together_are_named(classifier_run: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "old.csv").write_text("mine")
    seconds = "must be a number of seconds from 0.001 on, not inf"
    for options, message in (
        (["--window", 1], "--window belongs to --timeline"),
        (["--timeline", "--window", "inf"], f"--window: {seconds}"),
        (["--timeline", "--step", "inf"], f"--step: {seconds}"),
        (["--format", "srt"], "subtitles need the times of --timeline"),
        (["--timeline", "-o", tmp_path / "t.srt", clip_files], "subtitles are of one video, not of 5"),
        (["--json", "--format", "csv"], "--json and --format csv: choose one"),
        (["-o", tmp_path / "old.csv"], "old.csv: exists; choose another name, or use --overwrite"),
    ):
        command = ("predict", clip_files / "clip0.mp4", "-c", classifier_run, *options)
        assert message in refused(*command, code=2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_of_images_has_no_timeline(classifier_run: Path, tmp_path: Path):
    for number in range(4):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number}.png")
    (found,) = json_of("predict --timeline", tmp_path, "-c", classifier_run, code=4)
    assert "a folder of images has no seconds" in found["error"]
