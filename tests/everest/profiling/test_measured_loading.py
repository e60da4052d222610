import json
from pathlib import Path

import pytest
from small_runs import json_of, refused, run

from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.profiling import timing
from everest.profiling.timing import measure_stage

PROFILE = "profile --recipe custom --backbone vit-tiny"
SMALL = ("data.frames=4", "data.size=64", "model.tubelet=[2,8,8]", "model.depth=1", "data.num_classes=2")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "READING_SECONDS", 0.1)


def recipe_on(folder: Path, *overrides: str) -> Recipe:
    root = f"data.root={json.dumps(str(folder))}"
    return load_recipe("custom", overrides=[root, "pretrain.stride=2", *SMALL, *overrides])


def test_reading_is_measured_for_each_clip_of_a_video(clip_files: Path):
    recipes = (recipe_on(clip_files, f"pretrain.views_per_decode={views}") for views in (1, 4))
    one, four = (measure_stage(recipe, "pretrain", cpu=True, reads=True) for recipe in recipes)
    assert one.read_seconds is not None
    assert four.read_seconds is not None
    assert 0 < four.read_seconds < one.read_seconds
    assert 0 < one.dump()["data_wait"] < 1


def test_the_command_measures_both_training_stages_or_pre_training_alone(clip_files: Path, tmp_path: Path):
    def read(*words: object) -> list[str]:
        stages = json_of(PROFILE, *options, *words)["stages"]
        return [name for name, stage in stages.items() if stage["measured"]["read_seconds"]]

    options = [f"--set={change}" for change in SMALL]
    assert read("--data", clip_files) == ["pretrain", "finetune"]
    (tmp_path / "videos").symlink_to(clip_files)
    unlabeled = ["--data", tmp_path, "--set=data.train=null"]
    assert read(*unlabeled, "--set=data.pretrain=videos") == ["pretrain"]
    assert "data.train: not set" in refused(PROFILE, *options, *unlabeled, code=2)
    assert "; reading " in run(PROFILE, *options, "--data", clip_files)
