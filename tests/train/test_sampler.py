"""Runs with `finetune.sampler`: exact resume, equal draws of two processes, classes without a video."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from processes import TWO, everest, stop_after
from small_runs import called, equal, metrics, refused, run, same_run, small_recipe, weights

from everest.config.recipe import load_recipe

COMMAND = ["finetune", "--init", "none", "-q"]
PLAIN = ["--set", "finetune.mixup=0", "--set", "finetune.cutmix=0", "--set", "finetune.drop_path=0"]
STILL = [*PLAIN, "--set", "finetune.erasing=0", "--set", "finetune.base_lr=0.01"]
BALANCED = ["--set", "finetune.sampler=balanced"]


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """A recipe of four videos, three of the first class."""
    rows = [f"{clip_files}/clip{i}.mp4,{int(i == 3)}\n" for i in range(4)]
    (tmp_path / "train.csv").write_text("".join(rows))
    (tmp_path / "val.csv").write_text(rows[0])
    return small_recipe(tmp_path, tmp_path)


@pytest.mark.slow
def test_a_killed_balanced_run_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ["--set", "finetune.steps=24", "--set", "finetune.batch_size=6"]
    command = [*COMMAND, *steps, *BALANCED]
    run(*command, "--recipe", recipe, "-o", whole)
    assert stop_after(recipe, command, parts, signal.SIGKILL, rows=9) == -signal.SIGKILL
    run(*command, "--recipe", recipe, "-o", parts)
    assert same_run(parts, whole)
    run(*COMMAND, *steps, "--recipe", recipe, "-o", tmp_path / "shuffle")
    assert not equal(weights(tmp_path / "shuffle"), weights(whole))


@pytest.mark.slow
def test_two_processes_use_the_samples_of_one(recipe: Path, tmp_path: Path):
    command = [*COMMAND, *STILL, "--recipe", recipe]
    run(*command, *BALANCED, "-o", tmp_path / "one", "--gpus", "cpu")
    run(*command, "-o", tmp_path / "shuffle", "--gpus", "cpu")
    everest(*command, *BALANCED, "-o", tmp_path / "two", *TWO)
    norms = {
        name: [row["grad_norm"] for row in metrics(tmp_path / name) if "grad_norm" in row]
        for name in ("one", "two", "shuffle")
    }
    assert norms["two"] == pytest.approx(norms["one"], rel=1e-4)
    assert norms["shuffle"] != pytest.approx(norms["one"], rel=1e-2)


def test_shuffle_is_the_default_and_its_run_has_the_same_bits(recipe: Path, tmp_path: Path):
    run(*COMMAND, "--recipe", recipe, "-o", tmp_path / "default")
    run(*COMMAND, "--recipe", recipe, "-o", tmp_path / "named", "--set", "finetune.sampler=shuffle")
    assert equal(weights(tmp_path / "named"), weights(tmp_path / "default"))
    stored = tmp_path / "default" / "recipe.yaml"
    text = stored.read_text()
    assert "sampler: shuffle" in text
    stored.write_text(text.replace("  sampler: shuffle\n", ""))  # as an earlier version wrote it
    assert load_recipe(stored).finetune.sampler == "shuffle"


def test_a_class_without_a_validation_video_is_reported_once(recipe: Path, tmp_path: Path):
    command = ["finetune --init none --dry-run", "--recipe", recipe]
    text = "data.val has no video of 1 of 2 classes: '1'"
    assert called(*command, "--set", "data.val=val.csv").stderr.count(text) == 1
    assert "has no video" not in called(*command).stderr
    assert "has no video" not in called(*command, "--set", "data.val=null").stderr
    assert "finetune.sampler" in refused(*command, "--set", "finetune.sampler=equal", code=2)
