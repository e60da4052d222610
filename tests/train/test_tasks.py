"""Classifiers of several labels and of numbers, trained, evaluated and resumed by the commands."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from labeled_lists import labeled_recipe
from processes import stop_after
from small_runs import called, equal, refused, run, small_recipe, weights

import everest
from everest.config.heads import Head, named_heads
from everest.system.run_folder import RunFolder
from everest.system.weights_header import read_header

EXPECTED = {
    "tags": (Head(task="multi-label", outputs=2),),
    "speeds": (Head(task="regression", outputs=1, mean=-0.0625, std=float(np.std([0.5, 1.25, -2, 0]))),),
}


TRAIN = "finetune --init none -q"


@pytest.fixture(scope="module", params=["tags", "speeds", "heads"])
def trained(request: pytest.FixtureRequest, clip_files: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    recipe = labeled_recipe(folder, clip_files, request.param)
    run(TRAIN, "--recipe", recipe, "-o", folder / "run")
    return request.param, folder / "run"


def test_the_weights_know_their_heads(trained: tuple[str, Path]):
    name, folder = trained
    model = everest.load_model(folder / "model.safetensors")  # the last, which has no calibration
    if name == "heads":
        scale = EXPECTED["speeds"][0]
        heads = named_heads({"verb": 2, "tags": {"multi-label": 3}, "speed": "regression"})
        assert model.heads[:2] == heads[:2]
        assert (model.heads[2].mean, model.heads[2].std) == pytest.approx((scale.mean, scale.std))
    else:
        assert model.heads == EXPECTED[name]
        assert model.class_names == (("jump", "run") if name == "tags" else None)


def test_the_best_weights_have_the_thresholds_that_were_chosen_on_validation_videos(
    trained: tuple[str, Path],
):
    name, folder = trained
    heads = {head.name: head.calibration for head in everest.load_model(folder / "best.safetensors").heads}
    if name == "tags":
        assert heads[""] is not None
        assert len(heads[""].thresholds) == 2
    if name == "heads":
        assert heads["speed"] is None
        assert heads["verb"] is not None
        assert (len(heads["verb"].thresholds), len(heads["tags"].thresholds)) == (0, 3)


def test_eval_measures_each_task(trained: tuple[str, Path], tmp_path: Path):
    name, folder = trained
    table = tmp_path / "predictions.csv"
    found = json.loads(run("eval", "-c", folder, "--json", "-q", "--predictions", table))
    names = {
        "tags": {"map", "micro_f1", "macro_f1", "exact_match", "chance_map", "ece"},
        "speeds": {"mae", "rmse", "r2", "spearman", "chance_mae"},
    }
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == found["videos"] == 4
    if name == "heads":
        assert names["tags"] <= set(found["heads"]["tags"])
        assert names["speeds"] <= set(found["heads"]["speed"])
        assert "top1" in found["heads"]["verb"]
        assert {"predicted.verb", "predicted.tags", "predicted.speed"} <= set(rows[0])
        return
    assert names[name] <= set(found)
    if name == "speeds":
        errors = [abs(float(row["error"])) for row in rows]
        assert np.mean(errors) == pytest.approx(found["mae"], rel=1e-4)
        assert [row["label"] for row in rows] == ["0.5", "1.25", "-2", "0"]
    else:
        assert [row["label"] for row in rows] == ["jump|run", "run", "", "jump"]
        right = [row["label"] == row["predicted"] for row in rows]
        assert 100 * np.mean(right) == found["exact_match"]


@pytest.mark.parametrize("name", ["tags", pytest.param("heads", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_bits(name: str, clip_files: Path, tmp_path: Path):
    recipe = labeled_recipe(tmp_path, clip_files, name)
    command = ["finetune", "--init", "none", "-q"]
    run(*command, "--recipe", recipe, "-o", tmp_path / "whole")
    stop_after(recipe, command, tmp_path / "killed", signal.SIGKILL, rows=2)
    run(*command, "--recipe", recipe, "-o", tmp_path / "killed")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_the_best_weights_are_those_of_the_chosen_metric(clip_files: Path, tmp_path: Path):
    recipe, folder = labeled_recipe(tmp_path, clip_files, "tags"), tmp_path / "run"
    run(TRAIN, "--recipe", recipe, "--set", "finetune.best=loss", "-o", folder)
    rows = [row for row in RunFolder(folder).rows() if "val_loss" in row]
    lowest = min(rows, key=lambda row: row["val_loss"])
    assert read_header(folder / "best.safetensors").step == lowest["step"]


def test_a_head_of_another_task_starts_fresh(clip_files: Path, tmp_path: Path):
    still = ["--set", "finetune.base_lr=1e-9", "--set", "finetune.min_lr=0", "--init"]
    first, tags = small_recipe(tmp_path, clip_files), labeled_recipe(tmp_path, clip_files, "tags")
    run("finetune", "--recipe", first, *still, "none", "-o", tmp_path / "one")
    other = ["--set", "train.seed=1", "-o", tmp_path / "several"]  # another fresh head than the first run's
    said = called("finetune", "--recipe", tags, *still, tmp_path / "one", *other).stderr
    assert "the checkpoint's head is single-label, the recipe's multi-label: the head starts fresh" in said
    one, several = weights(tmp_path / "one"), weights(tmp_path / "several")
    assert not torch.allclose(one["head.weight"], several["head.weight"], atol=1e-6)
    torch.testing.assert_close(
        one["encoder.patch_embed.proj.weight"], several["encoder.patch_embed.proj.weight"], atol=1e-6, rtol=0
    )


def test_answers_are_the_mean_and_std_of_the_list_apart_from_the_head():
    model = everest.create_model(
        "vit-tiny", kind="classifier", task="regression", frames=4, size=32, tubelet=(2, 8, 8), depth=1
    )
    logits = torch.tensor([[-1.0], [0.5]])
    assert torch.equal(model.answers(logits), logits)  # no scale without a training list


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("tags", "finetune.best=top1", "top1 is not measured for these labels; known: map, macro_f1, loss"),
        ("speeds", "finetune.cutmix=0.5", "cannot mix numbers"),
        ("speeds", "finetune.sampler=balanced", "balanced needs classes, and the labels are numbers"),
        ("speeds", "finetune.class_weights=balanced", "needs classes, and the labels are numbers"),
        ("speeds", "data.num_classes=3", "is of classes, and data.task is regression"),
        ("tags", "finetune.class_weights={jumpp: 2}", "unknown class 'jumpp'; did you mean 'jump'"),
        ("heads", "data.task=multi-label", "does not go with data.heads"),
        ("heads", "finetune.best=map", "map is not measured for these labels; known: loss"),
    ],
)
def test_settings_that_do_not_fit_the_labels_are_refused(
    name: str, option: str, message: str, clip_files: Path, tmp_path: Path
):
    recipe = labeled_recipe(tmp_path, clip_files, name)
    command = (TRAIN, "--recipe", recipe, "-o", tmp_path / "r", "--set", option)
    assert message in refused(*command, code=2)
    assert not (tmp_path / "r").exists()


def test_numbers_that_float32_cannot_tell_apart_are_refused(clip_files: Path, tmp_path: Path):
    command = (TRAIN, "--recipe", labeled_recipe(tmp_path, clip_files, "speeds"), "-o", tmp_path / "r")
    for cells, message in (
        ((0.1, 0.1), "all 2 numbers of the column label are 0.1; check the list"),
        ((1_700_000_000, 1_700_000_011), "subtract 1.70000001e+09 from all of them"),
        ((1e308, -1e308), "label 1e+308 is beyond 1e+15; use another unit"),
    ):
        rows = [f"clip{i}.mp4,{cell}\n" for i, cell in enumerate(cells)]
        (tmp_path / "speeds.csv").write_text("".join(["path,label\n", *rows]))
        assert message in refused(*command, code=4)
        assert not (tmp_path / "r").exists()


def test_weights_by_name_train(clip_files: Path, tmp_path: Path):
    """Equal weights change nothing, and a larger one counts from the first step on."""
    recipe, losses = labeled_recipe(tmp_path, clip_files, "tags"), []
    idle = ("--set", "data.val=null", "--set", "finetune.best=macro_f1", "--set", "finetune.patience=2")
    for setting in ("none", "{jump: 1, run: 1}", "{jump: 1, run: 9}"):
        folder = tmp_path / str(len(losses))
        sets = ("--set", f"finetune.class_weights={setting}", *idle)
        ended = called("finetune --init none", "--recipe", recipe, "-o", folder, *sets)
        assert "warning: finetune.best and finetune.patience: no effect without a list" in ended.stderr
        losses.append([row["loss"] for row in RunFolder(folder).rows() if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the weighted mean rounds otherwise
    assert losses[2][0] > losses[1][0]
