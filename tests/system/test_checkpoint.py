import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from everest.checkpoints.load import find_weights
from everest.engine.state import SavedState
from everest.errors import CheckpointError
from everest.system.weights import load_tensors
from everest.system.weights_header import read_header


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_command_for_a_file_of_another_program_can_be_pasted(tmp_path: Path, suffix: str):
    path = (tmp_path / "it's mine").with_suffix(suffix)
    save_file({"w": torch.rand(2)}, path)
    with pytest.raises(CheckpointError) as caught:
        read_header(find_weights(str(path)))
    command, end, _ = str(caught.value).partition("first run ")[2].partition("FILE.safetensors")
    assert shlex.split(command + end) == ["everest", "convert", str(path), "--output", "FILE.safetensors"]


def test_the_newest_states_are_kept(tmp_path):
    for step in (1, 2, 10):
        SavedState(step=step, tensors={"model/w": torch.zeros(3)}, notes={}).save(tmp_path, keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-000000002.safetensors", "step-000000010.safetensors"]


def test_tensors_that_do_not_fit_are_listed():
    tensors = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_tensors(nn.Linear(3, 2), tensors, source="file")
    differences = "1 missing (bias); 1 unexpected (extra); 1 of another shape (weight)"
    assert str(error.value) == f"file: the weights do not fit the model: {differences}"
