import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_runs import called, json_of, refused, sets
from torch import Tensor

import everest
from everest.data.views import EvalViews
from everest.lists.sample import Sample
from everest_cli.options import is_on_cpu
from everest_cli.predict import format_csv, format_table

VIEWS = ["--views", "2x1"]


def views(video: Path, *, frames: int, size: int, stride: int, clips: int) -> Tensor:
    make = EvalViews(frames=frames, stride=stride, size=(size, size), clips=clips, crops=1, sampling="dense")
    return everest.normalize(make(Sample(path=str(video)), None, "auto").frames)  # type: ignore[arg-type]


def test_predictions_are_the_mean_probabilities_of_the_views(classifier_run: Path, clip_files: Path):
    videos = [clip_files / "clip0.mp4", clip_files / "clip1.mp4"]
    rows = json_of("predict", *videos, "-c", classifier_run, *VIEWS)
    model = everest.load_model(classifier_run)
    for row, video in zip(rows, videos, strict=True):
        x = views(video, frames=4, size=32, stride=2, clips=2)
        with torch.no_grad():
            expected = model(x).softmax(dim=-1).mean(dim=0)
        assert row["video"] == str(video)
        assert [p["index"] for p in row["predictions"]] == expected.argsort(descending=True).tolist()
        found = [p["probability"] for p in row["predictions"]]
        assert found == pytest.approx(expected.sort(descending=True).values.tolist(), abs=2e-6)


def test_predictions_equal_those_of_eval(classifier_run: Path, clip_files: Path, tmp_path: Path):
    called("eval", "-c", classifier_run, "--predictions", tmp_path / "eval.csv", "-q")
    with (tmp_path / "eval.csv").open() as file:
        expected = {row["video"]: row for row in csv.DictReader(file)}
    for options in ([], ["--batch", 3]):
        rows = json_of("predict", clip_files / "train.csv", "-c", classifier_run, *options)
        found = {row["video"]: row["predictions"][0] for row in rows}
        assert found.keys() == expected.keys()
        for video, row in expected.items():
            assert found[video]["label"] == row["predicted"]
            assert found[video]["probability"] == pytest.approx(float(row["probability"]), abs=1e-5)


def test_a_list_may_name_segments_and_begin_elsewhere(classifier_run: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "list.csv").write_text("path,start,end\nclip0.mp4,0.5,1.5\nclip0.mp4,,\n")
    rows = json_of("predict", tmp_path / "list.csv", "--data", clip_files, "-c", classifier_run)
    video = str(clip_files / "clip0.mp4")
    assert [row["video"] for row in rows] == [f"{video}#0.5s-1.5s", video]
    (whole,) = json_of("predict", video, "-c", classifier_run)
    assert rows[1] == whole != rows[0]


def test_a_video_that_cannot_be_read_stops_no_other(classifier_run: Path, clip_files: Path, tmp_path: Path):
    shutil.copy(clip_files / "clip0.mp4", tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("no video")
    shutil.copy(clip_files / "clip1.mp4", tmp_path / "c.mp4")
    (tmp_path / "list.txt").write_text("gone.mp4\na.mp4\n")
    gone, here = json_of("predict", tmp_path / "list.txt", "-c", classifier_run, "--top", 1, code=4)
    assert gone == {"video": f"{tmp_path}/gone.mp4", "error": "No such file or directory"}
    assert len(here["predictions"]) == 1
    out = tmp_path / "features.safetensors"
    called("extract", tmp_path, "-c", classifier_run, "--out", out, code=4)  # also of a folder
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["videos"]) == [str(tmp_path / "a.mp4"), str(tmp_path / "c.mp4")]


def test_the_device_is_named_in_one_way(classifier_run, clip_files, monkeypatch):
    video, options = clip_files / "clip0.mp4", ["-c", classifier_run, "-q"]
    small = ["-b", "vit-tiny", *sets("data.frames=4", "data.size=64", "model.depth=1")]
    called("profile", *small, "--gpus", "cpu", "--measure")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert "--gpus 2: this command uses one device" in refused("probe", *options, "--gpus", 2, code=2)
    assert "this machine has 3" in refused("predict", video, *options, "--gpus", 7, code=5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert not is_on_cpu("1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_the_choice_of_the_best_weights_is_reported_once_unless_quiet(classifier_run, clip_files, caplog):
    arguments = ["predict", clip_files / "clip0.mp4", "-c", classifier_run, "--gpus", "cpu"]
    called(*arguments)
    (message,) = caplog.messages
    assert message.startswith(f"{classifier_run}/best.safetensors: best weights on data.val, from step ")
    assert message.endswith("; --which newest uses the last ones")
    caplog.clear()
    called(*arguments, "-q")
    called(*arguments, "--which", "newest")
    assert caplog.messages == []


def test_errors_are_one_line(classifier_run, clip_files, tmp_path):
    empty, broken, out = (tmp_path / name for name in ("empty", "broken.mp4", "f.safetensors"))
    empty.mkdir()
    broken.write_text("no video")
    clip = clip_files / "clip0.mp4"
    (old := tmp_path / "old.csv").write_text("mine")
    for words, code, message in (
        (["predict", "gone.mp4"], 4, "gone.mp4: No such file or directory"),
        (["predict", empty], 4, "no videos below this folder"),
        (["predict", clip, "--data", empty], 2, "no list is named"),
        (["predict", clip, "--keep", 0], 2, "must be a number above 0 and at most 1, and leave some"),
        (["predict", clip, "--keep", 0.001], 2, "leave some of 32 tokens"),
        (["predict", clip, "--views", "1000000x1"], 2, "in memory at once; at most 512"),
        (["predict", clip, "--json", "--format", "csv"], 2, "--json and --format csv: choose one"),
        (["predict", clip, "-o", old], 2, "old.csv: exists; choose another name, or use --overwrite"),
        (["extract", broken, "--out", out], 4, "none of 1 videos can be read"),
    ):
        assert message in called(*words, "-c", classifier_run, code=code).stderr
    assert old.read_text() == "mine"
    assert not out.exists()


def test_several_heads_and_errors_have_their_columns():
    found = [{"label": "cut", "index": 3, "probability": 0.75}]
    predictions = [
        {"video": "a, b.mp4", "heads": {"verb": found, "noun": found}},
        {"video": "c.mp4", "error": "empty file"},
    ]
    assert list(csv.reader(io.StringIO(format_csv(predictions)))) == [
        ["video", "head", "rank", "label", "index", "probability", "error"],
        *(["a, b.mp4", head, "1", "cut", "3", "0.75", ""] for head in ("verb", "noun")),
        ["c.mp4", *[""] * 5, "empty file"],
    ]
    table = "a, b.mp4\n   75.0%  verb cut\n   75.0%  noun cut\nc.mp4\n  empty file\n"
    assert format_table(predictions) == table
