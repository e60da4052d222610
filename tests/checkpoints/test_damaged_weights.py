"""Weights with values that are no finite numbers, refused by every command that reads them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import timm
import torch
from foreign import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import refused, small_recipe

from everest.errors import CheckpointError
from everest.system.weights import Weights, read_weights
from everest.system.weights_header import read_metadata
from everest.train.state import SavedState, newest_state
from everest.train.tokenizer_loss import load_network

BIAS = "encoder.blocks.1.mlp.fc2.bias"


def spoiled(file: Path, copy: Path, value: float, name: str = BIAS) -> Path:
    """A copy of a weights file in which one value of a tensor is `value`."""
    tensors = load_file(file)
    tensors[name].view(-1)[3] = value
    copy.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, copy, metadata=read_metadata(file))
    return copy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_named_with_its_tensor_and_file(
    value: float, classifier_run: Path, tmp_path: Path
):
    file = spoiled(classifier_run / "model.safetensors", tmp_path / "x.safetensors", value)
    with pytest.raises(CheckpointError) as error:
        read_weights(file)
    assert str(error.value).startswith(f"{file}: {BIAS} has 1 value that is no finite number")


@pytest.mark.parametrize(
    "command",
    [["eval"], ["predict", "CLIP", "--json"], ["extract", "CLIP", "-o", "OUT"], ["export", "--to", "torch"]],
)
def test_no_command_runs_a_model_with_damaged_weights(
    command: list[str], classifier_run: Path, clip_files: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    (run / "best.safetensors").unlink()
    spoiled(run / "model.safetensors", run / "model.safetensors", math.nan)
    paths = {"CLIP": str(clip_files / "clip0.mp4"), "OUT": str(tmp_path / "out.npz")}
    arguments = [paths.get(part, part) for part in command]
    arguments += [run, "-o", tmp_path / "m.pt2"] if command[0] == "export" else ["-c", run]
    message = refused(*arguments, code=6)
    assert message.count("\n") == 1
    assert f"{run / 'model.safetensors'}: {BIAS} has 1 value" in message


def test_training_does_not_start_from_damaged_weights(
    autoencoder_run: Path, clip_files: Path, tmp_path: Path
):
    recipe = small_recipe(tmp_path, clip_files)
    file = spoiled(autoencoder_run / "model.safetensors", tmp_path / "x.safetensors", math.inf)
    message = refused("finetune", "--recipe", recipe, "--init", file, "-o", tmp_path / "run", "-q", code=6)
    assert f"{file}: {BIAS}" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_converted_weights_name_the_tensor_of_the_original(suffix: str, tmp_path: Path):
    tensors = tiny("mme_finetune_base")
    name = "encoder.model.blocks.0.mlp.fc1.bias"
    name = name if name in tensors else next(key for key in tensors if key.endswith("blocks.0.mlp.fc1.bias"))
    tensors[name][0] = math.nan
    file = tmp_path / f"x.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save({"model": tensors}, file)
    message = refused("convert", file, "-o", tmp_path / "out.safetensors", "--heads", 3, code=6)
    assert message.count("\n") == 1
    assert f"{file}: " in message
    assert "has 1 value that is no finite number" in message


@pytest.mark.parametrize("name", ["head.weight", "pos_embed"])
def test_sparse_weights_are_refused(name: str, tmp_path: Path):
    file, tensors = tmp_path / "x.pth", tiny("videomae_finetune_base")
    values = tensors.get(name, torch.ones(1, 1568, 48))
    torch.save({"model": tensors | {name: values.to_sparse()}}, file)
    message = refused("convert", file, "-o", tmp_path / "out.safetensors", "--heads", 3, code=6)
    assert message.count("\n") == 1
    assert f"{name} is stored as torch.sparse_coo, not as a dense tensor" in message


def test_a_value_beyond_float32_is_no_finite_number(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    tensors = {"w": torch.tensor([1.0, 1e300], dtype=torch.float64)}
    Weights(kind="pretrain", settings={}, classes=None, recipe="r", step=1, tensors=tensors).save(file)
    with pytest.raises(CheckpointError, match="w has 1 value that is no finite number"):
        read_weights(file)


def test_a_damaged_state_is_skipped(tmp_path: Path):
    for step, value in ((1, 1.0), (2, math.nan)):
        SavedState(step=step, tensors={"model/w": torch.tensor([value])}, notes={}).save(tmp_path, keep=2)
    notices: list[str] = []
    newest = newest_state(tmp_path, notify=notices.append)
    assert newest is not None
    assert newest.step == 1
    assert "model/w has 1 value that is no finite number" in notices[0]


def test_a_damaged_perceptual_network_is_refused(tmp_path: Path):
    tensors = timm.create_model("resnet50").state_dict()
    tensors["fc.bias"][0] = math.nan
    save_file(tensors, tmp_path / "resnet50.safetensors")
    with pytest.raises(CheckpointError, match=r"perceptual_weights: .*resnet50.safetensors: fc.bias has 1"):
        load_network(str(tmp_path / "resnet50.safetensors"))


def test_weights_too_large_to_compute_with_are_refused(
    classifier_run: Path, clip_files: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    (run / "best.safetensors").unlink()
    spoiled(run / "model.safetensors", run / "model.safetensors", 3e38, "head.weight")
    spoiled(run / "model.safetensors", run / "model.safetensors", 3e38, "norm.bias")
    for command in (["eval"], ["predict", clip_files / "clip0.mp4", "--json"]):
        message = refused(*command, "-c", run, code=6)
        assert message.endswith("\n")
        assert "its outputs are no finite numbers" in message.splitlines()[-1]


@pytest.mark.parametrize("name", ["norm.weight", "head.bias", "head.weight"])
def test_finetuning_names_a_tensor_that_its_start_lacks(
    name: str, classifier_run: Path, clip_files: Path, tmp_path: Path
):
    file = classifier_run / "model.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, tmp_path / "x.safetensors", header)
    recipe = small_recipe(tmp_path, clip_files)
    options = ["--recipe", recipe, "--init", tmp_path / "x.safetensors", "-o", tmp_path / "run", "-q"]
    assert f"x.safetensors: damaged, it has no {name}\n" in refused("finetune", *options, code=6)
