from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import assert_resumes_after_a_kill
from small_runs import called, metrics, refused, sets
from timed_videos import numbers_shown, write_numbered

from everest.config.recipe import load_recipe
from everest.data.recipe_clips import (
    finetune_dataset,
    num_clips,
    pretrain_dataset,
    validation_dataset,
)
from everest.lists.sample import Sample


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    write_numbered(tmp_path / "recording.mp4", range(100), Fraction(1, 4))  # 25 s
    (tmp_path / "train.csv").write_text("path,label,start,end\nrecording.mp4,0,,\nrecording.mp4,1,2,9\n")
    return tmp_path


def small(folder: Path, *overrides: str):
    sizes = [
        "data.size=32",
        "data.frames=4",
        "model.tubelet=[2,8,8]",
        "data.flip=false",
        "pretrain.sampling=dense",
    ]
    return load_recipe("custom", overrides=[f"data.root={folder}", "data.test=null", *sizes, *overrides])


def test_ten_seconds_of_video_are_a_clip(recording: Path, tmp_path: Path):
    path = str(recording / "recording.mp4")
    cases = [({}, 2), ({"start": 0, "end": 36000}, 3600), ({"start": 0, "end": 4}, 1)]
    cases += [({"start_frame": 0, "end_frame": 64}, 2), ({"start": 20.0}, 1)]
    assert [num_clips(Sample(path=path, **span)) for span, _ in cases] == [clips for _, clips in cases]
    assert num_clips(Sample(path=str(tmp_path / "missing.mp4"))) == 1
    first, second = pretrain_dataset(small(recording)).samples
    for each, expected in (("auto", (first, first, second)), (2, (first, first, second, second))):
        assert pretrain_dataset(small(recording, f"data.clips_per_video={each}")).samples == expected


def test_each_clip_of_a_video_is_at_another_place_in_each_epoch(recording: Path):
    dataset = pretrain_dataset(small(recording, "data.clips_per_video=3"))
    assert len(dataset) == 6
    assert dataset.notices == ("data.clips_per_video: 2 videos, 6 clips an epoch",)
    places = {numbers_shown(dataset.read((epoch, i)).frames[0])[0] for epoch in range(3) for i in range(3)}
    assert len(places) >= 7  # of nine draws among about ninety places
    again = pretrain_dataset(small(recording, "data.clips_per_video=3"))
    assert torch.equal(again.read((2, 1)).frames, dataset.read((2, 1)).frames)


def test_only_training_repeats_videos(recording: Path):
    recipe = small(recording, "data.clips_per_video=4", "data.val=train.csv", "finetune.sampler=balanced")
    dataset, classes = finetune_dataset(recipe)
    validation = validation_dataset(recipe, classes)
    assert (len(dataset), len(validation), classes.heads[0].outputs) == (8, 2, 2)
    assert np.allclose(dataset.sampling_odds, 1 / 4)


def test_views_are_not_compared_with_the_same_video(recording: Path, tmp_path: Path):
    words = ["pretrain", "-r", "small-views", "--data", recording, "--set", "data.clips_per_video=2"]
    assert "data.clips_per_video: must be 1" in refused(*words, "-o", tmp_path / "run", code=2)


@pytest.mark.slow
def test_a_killed_run_resumes_at_the_same_places(recipe: Path, tmp_path: Path):
    settings = sets("data.clips_per_video=3", "pretrain.epochs=5", "train.save_every=1")
    command = ["pretrain", "-q", "--gpus", "cpu", *settings]
    assert_resumes_after_a_kill(recipe, command, tmp_path, rows=3)
    assert len(metrics(tmp_path / "whole")) == 5 * 3  # 4 videos, 3 clips, batches of 4
    words = [*command, "--set=data.clips_per_video=2", "-r", recipe, "-o", tmp_path / "whole"]
    assert "clips_per_video" in refused(*words, code=2)


def test_short_videos_are_reported_once(tmp_path: Path, recipe: Path):
    notice = "4 of 4 videos (100%) are shorter than a clip of 4 frames at stride 9: frames are repeated"
    for stride in (8, 9):
        options = ["--recipe", recipe, "--set", f"pretrain.stride={stride}", "-o", tmp_path / str(stride)]
        shown = called("pretrain", *options).stderr
        assert shown.count("shorter than a clip") == shown.count(notice) == (stride == 9)
        assert "shorter than a clip" not in called("pretrain", *options).stderr  # the finished run is resumed


def test_videos_of_which_none_can_be_read_end_the_run_before_it_writes_a_folder(tmp_path: Path, recipe: Path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_text("no video")
    (tmp_path / "broken.csv").write_text("".join(f"{tmp_path / f'{i}.mp4'}\n" for i in range(3)))
    options = ["--recipe", recipe, "--set", f"data.train={tmp_path / 'broken.csv'}", "-o", tmp_path / "run"]
    shown = called("pretrain", *options, code=4).stderr
    assert f"none of the 3 videos examined can be read, first {tmp_path}/" in shown
    assert "not a video file" in shown
    assert not (tmp_path / "run").exists()
