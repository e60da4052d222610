import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import (
    STILL,
    called,
    json_of,
    killed_copy,
    logged,
    refused,
    run,
    same_run,
    sets,
    small_recipe,
    weights,
)
from task_runs import NAMES, SCORES, task_recipe

import everest
from everest.config.heads import Head, named_heads
from everest.system.run_folder import RunFolder
from everest.system.weights_header import read_header

TRAIN = "finetune --init none -q"


@pytest.fixture(params=["tags", "scores", "mixed"])
def trained(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(f"{request.param}_run")


def test_the_weights_know_their_heads(trained: tuple[str, Path]):
    name, folder = trained
    model = everest.load_model(folder / "model.safetensors")  # the last, which has no thresholds
    scale = (float(np.mean(SCORES)), pytest.approx(float(np.std(SCORES))))
    if name == "mixed":
        heads = named_heads({"verb": 2, "tags": {"multi-label": 3}, "score": "regression"})
        assert model.heads[:2] == heads[:2]
        assert (model.heads[2].mean, model.heads[2].std) == scale
    elif name == "tags":
        assert (model.heads, model.class_names) == ((Head(task="multi-label", outputs=3),), NAMES)
    else:
        (head,) = model.heads
        assert (head.task, head.outputs, model.class_names) == ("regression", 1, None)
        assert (head.mean, head.std) == scale


def test_the_best_weights_have_the_thresholds_that_were_chosen_on_validation_videos(trained):
    name, folder = trained
    heads = everest.load_model(folder / "best.safetensors").heads
    found = {head.name: len(head.chosen_thresholds) for head in heads}
    mixed = {"verb": 0, "tags": 3, "score": 0}
    assert found == {"tags": {"": 3}, "scores": {"": 0}, "mixed": mixed}[name]


def test_eval_measures_each_task(trained: tuple[str, Path], tmp_path: Path):
    name, folder = trained
    table = tmp_path / "predictions.csv"
    found = json_of("eval", "-c", folder, "-q", "--predictions", table)
    names = {
        "tags": {"map", "micro_f1", "macro_f1", "exact_match", "chance_map"},
        "scores": {"mae", "rmse", "r2", "spearman", "chance_mae"},
    }
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == found["videos"] == 4
    if name == "mixed":
        assert names["tags"] <= set(found["heads"]["tags"])
        assert names["scores"] <= set(found["heads"]["score"])
        assert "top1" in found["heads"]["verb"]
        assert {"predicted.verb", "predicted.tags", "predicted.score"} <= set(rows[0])
        return
    assert names[name] <= set(found)
    if name == "scores":
        errors = [abs(float(row["error"])) for row in rows]
        assert np.mean(errors) == pytest.approx(found["mae"], rel=1e-4)
        assert [row["label"] for row in rows] == ["10.5", "30", "-2.25", "41"]
    else:
        assert [row["label"] for row in rows] == ["sit|walk", "", "run", "run|sit|walk"]
        right = [row["label"] == row["predicted"] for row in rows]
        assert 100 * np.mean(right) == found["exact_match"]


@pytest.mark.parametrize("trained", ["tags", "mixed"], indirect=True)
def test_a_killed_run_resumes_to_the_same_bits(trained: tuple[str, Path], tmp_path: Path):
    """The kill itself is tested in test_killed.py; here, the files are as if it had come in the last step."""
    whole = trained[1]
    killed = killed_copy(whole, tmp_path / "run")
    rows = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(row for row in rows if json.loads(row)["step"] < 3))
    called(TRAIN, "--recipe", whole.parent / "tiny.yaml", "-o", killed)
    assert same_run(whole, killed)


@pytest.mark.parametrize("name", ["tags", "scores"])
def test_the_best_weights_of_mixed_clips_are_those_of_the_chosen_metric(name, clip_files, tmp_path):
    recipe, folder = task_recipe(tmp_path, clip_files, name), tmp_path / "run"
    run(TRAIN, "--recipe", recipe, *sets("finetune.best=loss", "finetune.mixup=0.8"), "-o", folder)
    losses = {row["val_loss"]: row["step"] for row in RunFolder(folder).rows() if "val_loss" in row}
    assert read_header(folder / "best.safetensors").step == losses[min(losses)]


def test_a_head_of_another_task_starts_fresh(clip_files: Path, tmp_path: Path):
    first = small_recipe(tmp_path, clip_files, {"num_classes: 2": "num_classes: 3"})
    tags = task_recipe(tmp_path, clip_files, "tags")
    run("finetune", "--recipe", first, *STILL, "--init", "none", "-o", tmp_path / "one")
    other = ["--set", "train.seed=1", "-o", tmp_path / "several"]  # another fresh head than the first run's
    said = called("finetune", "--recipe", tags, *STILL, "--init", tmp_path / "one", *other).stderr
    assert "the head starts fresh: the checkpoint predicts single-label" in said
    one, several = weights(tmp_path / "one"), weights(tmp_path / "several")
    assert not torch.allclose(one["head.weight"], several["head.weight"], atol=1e-6)
    torch.testing.assert_close(
        one["encoder.patch_embed.proj.weight"], several["encoder.patch_embed.proj.weight"], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("tags", "finetune.best=top1", "top1 is not measured for these labels; known: map, macro_f1, loss"),
        ("scores", "finetune.cutmix=0.5", "cannot mix numbers"),
        ("scores", "data.num_classes=3", "data.num_classes: has no effect with data.task=regression"),
        ("tags", "finetune.class_weights={sitt: 2}", "unknown class 'sitt'; did you mean 'sit'"),
        ("mixed", "finetune.best=map", "map is not measured for these labels; known: loss"),
    ],
)
def test_settings_that_do_not_fit_the_labels_are_refused(name, option, message, clip_files, tmp_path):
    recipe = task_recipe(tmp_path, clip_files, name)
    command = (TRAIN, "--recipe", recipe, "-o", tmp_path / "r", "--set", option)
    assert message in refused(*command, code=2)
    assert not (tmp_path / "r").exists()


def test_numbers_from_which_nothing_can_be_learned_are_refused(clip_files: Path, tmp_path: Path):
    command = (TRAIN, "--recipe", task_recipe(tmp_path, clip_files, "scores"), "-o", tmp_path / "r")
    for cells, message in (
        ((0.1, 0.1), "numbers of the column label are 0.1; check the list"),
        ((1_700_000_000, 1_700_000_011), "subtract 1.70000001e+09 from all of them"),
        ((1e308, -1e308), "label '1e+308' is not a number; write numbers like 1.5, none beyond 1e+15"),
    ):
        rows = [f"{clip_files}/clip{i}.mp4,{cell}\n" for i, cell in enumerate(cells)]
        (tmp_path / "scores" / "train.csv").write_text("".join(["path,label\n", *rows]))
        assert message in refused(*command, code=4)
        assert not (tmp_path / "r").exists()


def test_weights_by_name_train(clip_files: Path, tmp_path: Path):
    """Equal weights change nothing, and a larger one counts from the first step on."""
    recipe, losses = task_recipe(tmp_path, clip_files, "tags"), []
    idle = ("data.val=null", "finetune.best=macro_f1", "finetune.patience=2")
    for setting in ("none", "{run: 1, sit: 1, walk: 1}", "{run: 9, sit: 1, walk: 1}"):
        folder = tmp_path / str(len(losses))
        options = sets(f"finetune.class_weights={setting}", *idle)
        ended = called("finetune --init none", "--recipe", recipe, "-o", folder, *options)
        assert "warning: finetune.patience: no effect without data.val" in ended.stderr
        assert "no best checkpoint and no overfitting check without data.val" in ended.stderr
        losses.append(logged(folder))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the weighted mean rounds otherwise
    assert losses[2][0] > losses[1][0]
