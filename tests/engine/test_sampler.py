from pathlib import Path

import pytest
from processes import TWO, UNMIXED, assert_resumes_after_a_kill, everest
from small_runs import called, equal, logged, run, sets, small_recipe, weights

COMMAND = ["finetune", "--init", "none", "-q"]
STILL = sets(*UNMIXED, "finetune.base_lr=0.01")
BALANCED = sets("finetune.sampler=balanced")


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """A recipe of four videos, three of the first class."""
    rows = [f"{clip_files}/clip{i}.mp4,{int(i == 3)}\n" for i in range(4)]
    (tmp_path / "train.csv").write_text("".join(rows))
    (tmp_path / "val.csv").write_text(rows[0])
    return small_recipe(tmp_path, tmp_path)


@pytest.mark.slow
def test_a_killed_balanced_run_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    steps = sets("finetune.steps=24", "finetune.batch_size=6")
    assert_resumes_after_a_kill(recipe, [*COMMAND, *steps, *BALANCED], tmp_path, rows=9)
    run(*COMMAND, *steps, "--recipe", recipe, "-o", tmp_path / "shuffle")
    assert not equal(weights(tmp_path / "shuffle"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_two_processes_use_the_samples_of_one(recipe: Path, tmp_path: Path):
    command = [*COMMAND, *STILL, "--recipe", recipe]
    run(*command, *BALANCED, "-o", tmp_path / "one", "--gpus", "cpu")
    run(*command, "-o", tmp_path / "shuffle", "--gpus", "cpu")
    everest(*command, *BALANCED, "-o", tmp_path / "two", *TWO)
    one, two, shuffle = (logged(tmp_path / name, "grad_norm") for name in ("one", "two", "shuffle"))
    assert two == pytest.approx(one, rel=1e-4)
    assert shuffle != pytest.approx(one, rel=1e-2)


def test_a_class_without_a_validation_video_is_reported_once(recipe: Path):
    command = ["finetune --init none --dry-run", "--recipe", recipe]
    text = "data.val has no video of 1 of 2 classes: '1'"
    assert called(*command, "--set", "data.val=val.csv").stderr.count(text) == 1
    assert "has no video" not in called(*command).stderr
    assert "has no video" not in called(*command, "--set", "data.val=null").stderr
