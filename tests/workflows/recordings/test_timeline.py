import json
import re
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from damage import with_hole
from frame_spans import frame_span
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_runs import called, json_of, refused, run

import everest
from everest.errors import DataError
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.formats import read_annotations, recognize_format
from everest_workflows.recordings.bouts import BoutRules
from everest_workflows.recordings.timelines import Timelines

OPTIONS = ["--window", 0.5, "--step", 0.25, "-q"]


@pytest.fixture(scope="module")
def saved(classifier_run: Path, clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved timelines of clip0 and clip1."""
    file = tmp_path_factory.mktemp("saved") / "t.safetensors"
    videos = [clip_files / "clip0.mp4", clip_files / "clip1.mp4"]
    run("timeline", *videos, "-c", classifier_run, *OPTIONS, "--save", file)
    return file


def test_the_windows_are_those_of_the_training_unless_others_are_given(classifier_run, clip_files, tmp_path):
    project = tmp_path / "project"
    (project / "folds").mkdir(parents=True)
    fold = shutil.copytree(classifier_run, project / "folds" / "0" / "finetune")
    shutil.copytree(classifier_run, project / "finetune")
    (project / "project.json").write_text(json.dumps({"window": 0.75}))
    video = clip_files / "clip1.mp4"

    def rows(checkpoint: Path, *options: object) -> list[dict]:
        return json_of("timeline", video, "-c", checkpoint, *options)

    trained = rows(classifier_run, "--window", 0.75, "--step", 0.1875)
    for checkpoint in (project, project / "finetune", fold, fold / "best.safetensors"):
        assert rows(checkpoint) == trained
    assert everest.timeline(everest.load_model(project), video).to_rows() == trained
    assert rows(project, "--step", 0.5) == rows(classifier_run, "--window", 0.75, "--step", 0.5)
    assert rows(project, "--window", 0.5) == rows(classifier_run, "--window", 0.5)
    assert "windows of 0.75 s, as trained, every 0.1875 s" in called("timeline", video, "-c", project).stderr
    (project / "project.json").write_text(json.dumps({"window": None}))  # of videos, not of recordings
    assert rows(project) == rows(classifier_run) != trained
    (project / "project.json").write_text("{")
    message = refused("timeline", video, "-c", project, code=2)
    assert "project.json: damaged" in message
    assert "restore the file, or give --window" in message


def test_windows_around_the_damage_are_reported(classifier_run: Path, clip_files: Path, tmp_path: Path):
    with_hole(clip_files / "clip2.mp4", 0.7, tmp_path / "hole.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    options = ["-c", classifier_run, "--step", 0.25]
    expected = json_of("timeline", clip_files / "clip2.mp4", *options)[0]["windows"]
    videos = [tmp_path / "hole.mp4", tmp_path / "text.mp4"]
    damaged, text = json_of("timeline", *videos, *options, "--batch", 3, code=4)
    assert re.fullmatch(r"damaged: no intact frames from \d\.\d\d to \d\.\d\d s", damaged["error"])
    begin, end = map(float, re.findall(r"\d\.\d\d", damaged["error"]))
    windows = [(one["start"], one["end"]) for one in damaged["windows"]]
    assert all(stop <= begin + 0.01 or start >= end - 0.01 for start, stop in windows)
    assert set(windows) < {(one["start"], one["end"]) for one in expected}
    assert text == {"video": str(videos[1]), "windows": [], "bouts": [], "error": "not a video file"}
    assert damaged["bouts"][-1]["end"] == damaged["windows"][-1]["end"]
    saved = ["-o", tmp_path / "a.csv", "-q"]
    assert run("timeline", *videos, *options, *saved, code=4).split() == [str(tmp_path / "a.csv")]
    assert {each.video for each in read_annotations(tmp_path / "a.csv")} == {str(videos[0])}
    again = json_of("timeline", tmp_path / "a.safetensors", code=4)
    assert [row["error"] for row in again] == [damaged["error"], "not a video file"]
    assert run("timeline", tmp_path / "a.safetensors", code=4).splitlines()[-1] == "  not a video file"
    nothing = ["-o", tmp_path / "none.eaf", "--plot", tmp_path / "none.png", "-q"]
    assert run("timeline", videos[1], *options, *nothing, code=4) == ""
    assert not list(tmp_path.glob("none.[ep]*"))


def test_a_saved_timeline_is_read_without_model_and_videos(saved: Path, classifier_run, clip_files, tmp_path):
    videos = [clip_files / "clip0.mp4", clip_files / "clip1.mp4"]
    computed = json_of("timeline", *videos, "-c", classifier_run, *OPTIONS)
    assert json_of("timeline", saved) == computed
    timelines = everest.timeline(everest.load_model(classifier_run), videos, window=0.5, step=0.25)
    assert timelines.to_rows() == computed
    rules = ["--smooth", 1, "--min-seconds", 0.6]
    by_rules = timelines.bouts(BoutRules(smooth=1, min_seconds=0.6))
    smooth = json_of("timeline", saved, *rules)
    assert [row["bouts"] for row in smooth] == [[asdict(bout) for bout in bouts[""]] for bouts in by_rules]
    assert [row["windows"] for row in smooth] == [row["windows"] for row in computed]
    gone = replace(timelines, videos=[replace(video, path="/gone/a.mp4") for video in timelines.videos[:1]])
    gone.save(tmp_path / "gone.safetensors")
    run("timeline", tmp_path / "gone.safetensors", "-q", "-o", tmp_path / "gone.boris")
    frames = VideoTimes.from_rate(16, 32)
    found = [(each.label, *frame_span(frames, each)) for each in read_annotations(tmp_path / "gone.boris")]
    bouts = computed[0]["bouts"]
    assert sorted(found) == sorted((bout["label"], bout["start_frame"], bout["end_frame"]) for bout in bouts)


def test_the_table_has_the_bouts_and_the_json_file_what_json_prints(saved: Path, tmp_path: Path):
    rows = json_of("timeline", saved)
    run("timeline", saved, "-o", tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == rows
    for row in rows:
        bouts = row["bouts"]
        assert (bouts[0]["start"], bouts[0]["start_frame"]) == (0, 0)
        assert (bouts[-1]["end"], bouts[-1]["end_frame"]) == (2, 32)
        assert all(a["end"] == b["start"] and a["end_frame"] == b["start_frame"] for a, b in pairwise(bouts))
    lines = run("timeline", saved).splitlines()
    assert len(lines) == sum(1 + len(row["bouts"]) for row in rows)
    assert lines[0] == rows[0]["video"]
    first = rows[0]["bouts"][0]
    words = ["0.00", "to", f"{first['end']:.2f}", "s", f"{first['probability']:.1%}", first["label"]]
    assert lines[1].split() == words


def test_alarms_are_runs_of_faults_with_their_number_per_day(saved: Path, tmp_path: Path):
    loaded = Timelines.load(saved)
    faults = np.array([0, 1, 1, 1, 0, 1, 0, 1], np.float32)  # a run of three, and two of one
    (video, *_) = loaded.videos
    assert len(video.starts) >= len(faults) - 1
    outputs = np.stack([1 - faults, faults], axis=1)[: len(video.starts)]
    video = replace(
        video, starts=video.starts[: len(outputs)], ends=video.ends[: len(outputs)], outputs=outputs
    )
    file = tmp_path / "alarms.safetensors"
    replace(loaded, videos=[video]).save(file)
    document = json_of("timeline", file, "--normal", 0, "--threshold", 0.9, "--hold", 2)
    found = document["alarms"]
    (alarm,) = found["list"]
    times = {"time": round(float(video.ends[2]), 3), "end": round(float(video.ends[3]), 3)}
    assert alarm == {"video": video.video, **times, "label": "1", "probability": 1}
    days = found["hours"] / 24
    assert found["hours"] * 3600 == pytest.approx(video.ends[-1] - video.starts[0])
    assert found["per_day"] == pytest.approx(1 / days)
    assert np.array(found["interval"]) * days == pytest.approx([0.0253, 5.572], abs=1e-3)  # Garwood 1936
    assert (found["count"], len(document["timelines"])) == (1, 1)
    shown = run("timeline", file, "--normal", 0, "--hold", 4)
    assert "ALARM" not in shown
    first = f"alarms at threshold 0.5: 0 in {found['hours']:.3g} hours, 0 per day (95 % interval 0 to "
    assert first in shown
    assert "'x' is not a class of the model (0, 1)" in refused("timeline", file, "--normal", "x", code=2)
    assert "--hold: needs --normal CLASS" in refused("timeline", file, "--hold", 2, code=2)


def test_improbable_windows_are_background(saved: Path, tmp_path: Path):
    rows = json_of("timeline", saved, "--background", 1)
    for row in rows:
        (bout,) = row["bouts"]
        best = [window["predictions"][0]["probability"] for window in row["windows"]]
        assert bout["probability"] == pytest.approx(fmean(best), abs=1e-5)
        times = {"start": 0, "end": 2, "start_frame": 0, "end_frame": 32}
        assert {**bout, "probability": 0} == {**times, "label": None, "index": None, "probability": 0}
    assert "  background" in run("timeline", saved, "--background", 1)
    for kind, named in (("boris", r'"code": "CLASS"'), ("elan", 'TIER_ID="CLASS (automated)"')):
        output = tmp_path / f"file.{kind}"
        (first, *_) = run("timeline", saved, "--background", 1, "--to", kind, "-o", output).splitlines()
        text = (output / "clip0.eaf" if kind == "elan" else output).read_text()
        assert all(named.replace("CLASS", name) in text for name in ("0", "1"))
        assert read_annotations(Path(first)) == []


@pytest.mark.parametrize("kind", ["csv", "elan", "srt", "vtt", "boris"])
def test_every_kind_has_the_bouts_of_the_timeline(saved: Path, tmp_path: Path, kind: str):
    output = tmp_path / ("out.json" if kind == "boris" else "out")
    files = run("timeline", saved, "--to", kind, "-o", output).splitlines()
    assert len(files) == (2 if kind in ("elan", "vtt", "srt") else 1)
    found = [each for file in files for each in read_annotations(Path(file))]
    assert {recognize_format(Path(file)) for file in files} == {kind}
    times = VideoTimes.from_rate(16, 32)
    expected = [
        (Path(row["video"]).stem, bout["label"], bout["start_frame"], bout["end_frame"])
        for row in json_of("timeline", saved)
        for bout in row["bouts"]
    ]
    frames = [(Path(each.video).stem, each.label, *frame_span(times, each)) for each in found]
    assert sorted(frames) == sorted(expected)
    if kind not in ("srt", "vtt"):
        assert {each.origin for each in found} == {"automated"}


def test_rules_change_the_bouts_of_a_model_and_not_its_windows(tags_run: Path, clip_files, tmp_path):
    saved = tmp_path / "t.safetensors"
    called("timeline", clip_files / "clip1.mp4", "-c", tags_run, "--window", 0.5, "-q", "--save", saved)
    (plain,) = json_of("timeline", saved)
    (all_present,) = json_of("timeline", saved, "--threshold", 0, "--smooth", 1)
    assert all_present["windows"] == plain["windows"]
    assert {bout["label"] for bout in all_present["bouts"]} == {"run", "sit", "walk"}
    assert all((bout["start"], bout["end"]) == (0, 2) for bout in all_present["bouts"])
    (none_lasts,) = json_of("timeline", saved, "--threshold", "0", "--min-seconds", 3)
    assert none_lasts["bouts"] == []
    for options, message in (
        (["--background", 0.5], "--background: is only for single-label models"),
        (["--threshold", 1.5], "--threshold: must be from 0 to 1, not 1.5"),
    ):
        assert message in refused("timeline", saved, *options, code=2)


def test_options_that_do_not_go_together_are_named(saved, classifier_run, clip_files, tmp_path):
    video = [clip_files / "clip0.mp4", "-c", classifier_run]
    (tmp_path / "old.csv").write_text("mine")
    for words, message in (
        (video[:1], "--checkpoint: missing; name a model"),
        ([*video, "-o", tmp_path / "old.csv"], "old.csv: exists; choose another name, or use --overwrite"),
        ([*video, "-o", tmp_path / "t.png"], "end its name in .csv, .boris"),
        ([*video, "--save", tmp_path / "t.json"], "end its name in .safetensors"),
        ([*video, "--plot", tmp_path / "t.jpg"], "end the name of the figure in .png, .pdf, .svg"),
        ([saved, "-c", classifier_run], "no effect on a saved file"),
        ([saved, "--to", "csv"], "--to csv: needs --output"),
        ([saved, "--to", "csv", "-o", tmp_path / "a.srt"], "its ending says srt, but --to says csv; change"),
        ([saved, "--to", "elam", "-o", tmp_path / "a"], "'elam' is not one of"),
        ([saved, "-o", saved, "--to", "csv"], "is an input of this command"),
        ([saved, "-o", tmp_path / "t.png", "--to", "csv", "--plot", f"{tmp_path}/./t.png"], "also the file"),
        ([saved, "--threshold", "0.5"], "--threshold: is only for multi-label models"),
        ([saved, "--background", "nan"], "--background: must be from 0 to 1, not nan"),
        ([saved, "--min-seconds", "inf"], "--min-seconds: must be at least 0 seconds, not inf"),
    ):
        assert message in refused("timeline", *words, code=2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_of_images_has_no_timeline(classifier_run: Path, tmp_path: Path):
    for number in range(4):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number}.png")
    (found,) = json_of("timeline", tmp_path, "-c", classifier_run, code=4)
    assert "a folder of images has no seconds" in found["error"]


@pytest.mark.parametrize("value", [float("nan"), -0.5, 3e14])
def test_outputs_that_are_no_probabilities_are_damage(saved: Path, tmp_path: Path, value: float):
    assert len(Timelines.load(saved).videos) == 2
    with safe_open(saved, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["0.outputs"][0, 0] = value
    save_file(tensors, tmp_path / "damaged.safetensors", header)
    with pytest.raises(DataError, match="damaged"):
        Timelines.load(tmp_path / "damaged.safetensors")
