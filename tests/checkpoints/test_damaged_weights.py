import math
import shutil
from pathlib import Path

import pytest
import torch
from foreign import tiny
from safetensors.torch import load_file, save_file
from small_runs import refused

from everest.errors import CheckpointError
from everest.system.weights import Weights, read_weights
from everest.system.weights_header import read_metadata

BIAS = "encoder.blocks.1.mlp.fc2.bias"


def spoiled(file: Path, copy: Path, value: float, name: str = BIAS) -> Path:
    """A copy of a weights file in which one value of a tensor is `value`."""
    tensors = load_file(file)
    tensors[name].view(-1)[3] = value
    copy.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, copy, metadata=read_metadata(file))
    return copy


def test_a_value_that_is_no_number_is_named_with_its_tensor_and_file(classifier_run: Path, tmp_path: Path):
    file = tmp_path / "x.safetensors"
    for value in (math.nan, math.inf, -math.inf):
        spoiled(classifier_run / "model.safetensors", file, value)
        with pytest.raises(CheckpointError) as error:
            read_weights(file)
        assert str(error.value).startswith(f"{file}: {BIAS} has 1 value that is no finite number")
    tensors = {"w": torch.tensor([1.0, 1e300], dtype=torch.float64)}  # beyond float32
    Weights(kind="pretrain", settings={}, classes=None, recipe="r", step=1, tensors=tensors).save(file)
    with pytest.raises(CheckpointError, match="w has 1 value that is no finite number"):
        read_weights(file)


@pytest.mark.parametrize(
    "command",
    [["eval"], ["predict", "CLIP", "--json"], ["extract", "CLIP", "-o", "OUT"], ["export", "--to", "onnx"]],
)
def test_no_command_runs_a_model_with_damaged_weights(command, classifier_run, clip_files, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    (run / "best.safetensors").unlink()
    spoiled(run / "model.safetensors", run / "model.safetensors", math.nan)
    paths = {"CLIP": str(clip_files / "clip0.mp4"), "OUT": str(tmp_path / "out.npz")}
    arguments = [paths.get(part, part) for part in command]
    arguments += [run, "-o", tmp_path / "m.onnx"] if command[0] == "export" else ["-c", run]
    message = refused(*arguments, code=6)
    assert message.count("\n") == 1
    assert f"{run / 'model.safetensors'}: {BIAS} has 1 value" in message


def test_training_does_not_start_from_damaged_weights(autoencoder_run, classifier_run, recipe, tmp_path):
    file = spoiled(autoencoder_run / "model.safetensors", tmp_path / "x.safetensors", math.inf)
    command = ["finetune", "--recipe", recipe, "--init", file, "-o", tmp_path / "run", "-q"]
    assert f"{file}: {BIAS}" in refused(*command, code=6)
    whole = classifier_run / "model.safetensors"
    for name in ("norm.weight", "head.bias", "head.weight"):
        tensors = load_file(whole)
        del tensors[name]
        save_file(tensors, file, read_metadata(whole))
        assert f"x.safetensors: damaged, it has no {name}\n" in refused(*command, code=6)
    assert not (tmp_path / "run").exists()


def test_sparse_weights_are_refused(tmp_path: Path):
    file, tensors = tmp_path / "x.pth", tiny("videomae_finetune_base")
    for name, values in (("head.weight", tensors["head.weight"]), ("pos_embed", torch.ones(1, 1568, 48))):
        torch.save({"model": tensors | {name: values.to_sparse()}}, file)
        message = refused("convert", file, "-o", tmp_path / "out.safetensors", "--heads", 3, code=6)
        assert message.count("\n") == 1
        assert f"{name} is stored as torch.sparse_coo, not as a dense tensor" in message


def test_weights_too_large_to_compute_with_are_refused(classifier_run, clip_files, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    (run / "best.safetensors").unlink()
    spoiled(run / "model.safetensors", run / "model.safetensors", 3e38, "head.weight")
    spoiled(run / "model.safetensors", run / "model.safetensors", 3e38, "norm.bias")
    for command in (["eval"], ["predict", clip_files / "clip0.mp4", "--json"]):
        message = refused(*command, "-c", run, code=6)
        assert message.endswith("\n")
        assert "its outputs are not finite" in message.splitlines()[-1]
