import json
import re
from pathlib import Path

import pytest
from small_runs import json_of, refused, run

from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.profiling import timing
from everest.profiling.timing import time_loader

PROFILE = "profile --recipe custom --backbone vit-tiny"
SMALL = ("data.frames=4", "data.size=64", "model.tubelet=[2,8,8]", "pretrain.stride=2", "train.workers=0")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "LOADER_SECONDS", 0.2)
    monkeypatch.setattr(timing, "READING_SECONDS", 0.1)


def recipe_on(folder: Path, *overrides: str) -> Recipe:
    root = f"data.root={json.dumps(str(folder))}"
    return load_recipe("custom", overrides=[root, "data.num_classes=2", *SMALL, *overrides])


def test_a_step_faster_than_the_loader_waits(clip_files: Path):
    found = time_loader(recipe_on(clip_files), "pretrain", batch=2, step_clips_per_second=1e6)
    assert 0.9 < found["data_wait"] < 1
    changes = found["changes"]
    assert list(changes.values()) == sorted(changes.values(), reverse=True)
    assert 1 < changes["everest prepare encode --codec mjpeg"] <= timing.MJPEG_GAIN
    assert not any("views_per_decode" in change for change in changes)  # it costs accuracy


def test_videos_that_are_fast_to_read_are_not_to_be_encoded_again(clip_files: Path, tmp_path: Path):
    run("prepare encode", clip_files / "train.csv", "-o", tmp_path / "fast", "--codec", "mjpeg")
    found = time_loader(recipe_on(tmp_path / "fast"), "pretrain", batch=2, step_clips_per_second=1e6)
    assert found["data_wait"] > 0
    assert "everest prepare encode --codec mjpeg" not in found["changes"]


@pytest.mark.parametrize("resize", ["cpu", "device"])
def test_a_loader_faster_than_the_step_does_not_wait(clip_files: Path, resize: str):
    recipe = recipe_on(clip_files, "train.workers=1", f"data.resize={resize}")
    found = time_loader(recipe, "finetune", batch=2, step_clips_per_second=0.01)
    assert (found["data_wait"], found["workers"]) == (0, 1)
    assert found["clips_per_second"] > 0.01
    assert found["changes"] == {}


@pytest.mark.slow
def test_the_command_measures_both_training_stages_or_pre_training_alone(clip_files: Path, tmp_path: Path):
    options = [f"--set={change}" for change in (*SMALL, "data.num_classes=2")]
    stages = json_of(PROFILE, "--data", clip_files, *options)["stages"]
    for stage in ("pretrain", "finetune"):
        step = stages[stage]["measured"]["clips_per_second"]
        assert stages[stage]["loading"]["step_clips_per_second"] == step
    assert "loading" not in stages["eval"]
    shown = run(PROFILE, "--data", clip_files, *options)
    assert re.search(
        r"^pretrain: loader \d+ clips/s, step \d+ clips/s: the (loader|step) is the limit", shown, re.M
    )
    (tmp_path / "videos").symlink_to(clip_files)
    unlabeled = [PROFILE, "--data", tmp_path, *options, "--set=data.train=null"]
    stages = json_of(*unlabeled, "--set=data.pretrain=videos")["stages"]
    assert [stage for stage in stages if "loading" in stages[stage]] == ["pretrain"]
    assert "data.train: not set" in refused(*unlabeled, code=2)
