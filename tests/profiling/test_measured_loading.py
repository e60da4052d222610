import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import called, json_of, refused

from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.profiling import loading
from everest.profiling.loading import measure_loading

PROFILE = "profile --recipe custom --backbone vit-tiny"
SMALL = ("data.frames=4", "data.size=64", "model.tubelet=[2,8,8]", "pretrain.stride=2", "train.workers=0")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "SECONDS", 0.2)
    monkeypatch.setattr(loading, "ITEM_SECONDS", 0.1)


def recipe_on(folder: Path, *overrides: str) -> Recipe:
    root = f"data.root={json.dumps(str(folder))}"
    return load_recipe("custom", overrides=[root, "data.num_classes=2", *SMALL, *overrides])


def test_a_step_faster_than_the_loader_waits_and_remedies_are_listed(clip_files: Path):
    found = measure_loading(recipe_on(clip_files), "pretrain", batch=2, step_clips_per_second=1e6)
    assert found["waits"] == "step"
    assert 0.9 < found["data_wait"] < 1
    advised = [text.partition(":")[0].partition("=")[0] for text in found["helps"]]
    assert advised == ["pretrain.views_per_decode", "train.workers", "data.cache"]


def test_settings_in_use_are_not_advised(clip_files: Path):
    recipe = recipe_on(clip_files, "pretrain.views_per_decode=4", "data.cache=disk")
    found = measure_loading(recipe, "pretrain", batch=4, step_clips_per_second=1e6)
    assert [text.partition("=")[0] for text in found["helps"]] == ["train.workers"]


def test_a_loader_faster_than_the_step_needs_no_help(clip_files: Path):
    recipe = recipe_on(clip_files, "train.workers=1")
    found = measure_loading(recipe, "finetune", batch=2, step_clips_per_second=0.01)
    assert (found["waits"], found["data_wait"], found["helps"]) == ("loader", 0, [])
    assert found["clips_per_second"] > 0.01
    assert found["workers"] == 1


def test_the_command_measures_both_training_stages(clip_files: Path):
    options = [f"--set={change}" for change in (*SMALL, "data.num_classes=2")]
    stages = json_of(PROFILE, "--data", clip_files, *options)["stages"]
    for stage in ("pretrain", "finetune"):
        step = stages[stage]["measured"]["clips_per_second"]
        assert stages[stage]["loading"]["step_clips_per_second"] == step
    assert "loading" not in stages["eval"]


def test_unlabeled_videos_are_measured_for_pre_training_alone(clip_files: Path, tmp_path: Path):
    (tmp_path / "videos").symlink_to(clip_files)
    changes = (*SMALL, "data.train=null", "data.pretrain=videos")
    arguments = [PROFILE, "--data", tmp_path, *(f"--set={change}" for change in changes)]
    result = called(*arguments, "--json")
    assert "finetune is measured without videos: data.train: not set" in result.stderr
    stages = json.loads(result.stdout)["stages"]
    assert [stage for stage in stages if "loading" in stages[stage]] == ["pretrain"]
    assert "data.train: not set" in refused(*arguments, "--set=data.pretrain=null", code=2)


def test_a_damaged_first_video_hides_no_measurement(clip_files: Path, tmp_path: Path):
    folder = shutil.copytree(clip_files, tmp_path / "videos")
    (folder / "clip0.mp4").write_text("no video")
    recipe = recipe_on(folder, "data.max_bad=0.5")
    recipe = replace(recipe, data=replace(recipe.data, size=24))
    found = measure_loading(recipe, "pretrain", batch=2, step_clips_per_second=1e6)
    assert any("64x48 pixels, a clip 24" in text for text in found["helps"])
