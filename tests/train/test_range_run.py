"""A classifier that is fine-tuned with a range of keep ratios, as users train, resume and use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import TWO, UNMIXED, everest
from small_runs import called, equal, json_of, killed_copy, logged, run, sets, small_recipe, weights

from everest.checkpoints.graph import exportable
from everest.checkpoints.load import open_model

RANGE = {"finetune: {": "finetune: {selection: {keep_ratio: [0.25, 1.0]}, "}


@pytest.fixture(scope="module")
def range_recipe(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    return small_recipe(tmp_path_factory.mktemp("recipe"), clip_files, RANGE)


@pytest.fixture(scope="module")
def range_run(tmp_path_factory: pytest.TempPathFactory, range_recipe: Path) -> Path:
    folder = tmp_path_factory.mktemp("range") / "run"
    run("finetune --init none -q", "--recipe", range_recipe, "-o", folder)
    return folder


def shares(folder: Path) -> list[float]:
    return logged(folder, "keep_ratio")


def test_each_step_draws_a_share_that_a_resumed_run_repeats(
    range_run: Path, range_recipe: Path, tmp_path: Path
):
    drawn = shares(range_run)
    assert len(drawn) == 3
    assert len(set(drawn)) > 1
    assert all(0.25 <= share <= 1 for share in drawn)
    resumed = killed_copy(range_run, tmp_path / "run")
    called("finetune --init none -q", "--recipe", range_recipe, "-o", resumed)
    assert shares(resumed)[-1] == drawn[-1]
    assert equal(weights(resumed), weights(range_run))


def test_commands_use_the_upper_end_and_state_it(
    range_run: Path, range_recipe: Path, clip_files: Path, tmp_path
):
    evaluated = json_of("eval", "-c", range_run, "-q", "--keep", "1,0.25", "--no-interval")
    assert (evaluated["keep"], evaluated["tokens"]) == (1.0, 32)
    assert evaluated["top1"] == evaluated["sweep"][0]["top1"]
    clip = clip_files / "clip0.mp4"
    predicted = json_of("predict", clip, "-c", range_run, "-q")
    assert predicted == json_of("predict", clip, "-c", range_run, "-q", "--keep", "1")
    figures = ["--output", tmp_path / "of-run", "-c", range_run]
    assert json_of("visualize-mask", clip, *figures)[0]["keep"] == 1.0
    figures = ["--output", tmp_path / "of-recipe", "--recipe", range_recipe, "--stage", "finetune"]
    assert json_of("visualize-mask", clip, *figures)[0]["keep"] == 1.0
    assert json_of("visualize-mask", clip, *figures, "--keep", "0.5", "--overwrite")[0]["keep"] == 0.5
    profiled = called("profile", "--recipe", range_recipe, "--json")
    assert json.loads(profiled.stdout)["stages"]["finetune"]["tokens"] == {"total": 32, "kept": 32}
    assert "keep_ratio is drawn from 0.25 to 1: values are of 1" in profiled.stderr
    exported = exportable(open_model(range_run), keep=None)
    assert exported.spec.selection.keep_ratio == 1.0
    assert exportable(open_model(range_run), keep=0.5).spec.selection.keep_ratio == 0.5


@pytest.mark.slow
def test_processes_and_passes_of_a_step_share_its_draw(range_recipe: Path, tmp_path: Path):
    command = ["finetune", "--recipe", range_recipe, "--init", "none", *sets(*UNMIXED)]
    one, four, two = (tmp_path / name for name in ("one", "four", "two"))
    run(*command, "-o", one, "--gpus", "cpu", "--set", "train.micro_batch=4")
    run(*command, "-o", four, "--gpus", "cpu", "--set", "train.micro_batch=1")
    everest(*command, "-o", two, *TWO)
    assert shares(one) == shares(four) == shares(two)
    for folder in (four, two):
        assert logged(folder) == pytest.approx(logged(one), abs=1e-5)
