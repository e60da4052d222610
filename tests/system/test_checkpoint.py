from __future__ import annotations

import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from everest.errors import CheckpointError, EnvironmentProblem
from everest.system.files import write_atomically
from everest.system.weights import Weights, load_tensors, read_weights
from everest.system.weights_header import read_header
from everest.train.state import RunState, load_optimizer, newest_state, optimizer_tensors, save_state


def state_of(step: int) -> RunState:
    return RunState(
        step=step, model={"w": torch.full((3,), step)}, optimizer={}, ema={}, notes={"step": step}
    )


def test_weights_are_read_back_with_their_header(tmp_path):
    weights = Weights(
        kind="classifier",
        settings={"a": [1, 2.5]},
        classes=("x, y", "z"),
        recipe="r",
        step=7,
        tensors={"w": torch.rand(2)},
    )
    path = tmp_path / "new" / "model.safetensors"
    weights.save(path)
    back = read_weights(path)
    assert torch.equal(back.tensors["w"], weights.tensors["w"])
    assert (back.kind, back.settings, back.classes, back.recipe, back.step) == (
        "classifier",
        {"a": [1, 2.5]},
        ("x, y", "z"),
        "r",
        7,
    )
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044  # others may read it


def test_a_file_that_is_no_checkpoint_of_everest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_weights(tmp_path / "missing.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.rand(2)}, foreign)
    with pytest.raises(CheckpointError, match="not written by everest"):
        read_weights(foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_weights(text)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(foreign.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_weights(cut)


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentProblem, match="disk is full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_newest_states_are_kept_and_a_damaged_one_is_skipped(tmp_path):
    for step in (1, 2, 10):
        save_state(tmp_path, state_of(step), keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-000000002.safetensors", "step-000000010.safetensors"]
    notices = []
    newest = newest_state(tmp_path, notify=notices.append)
    assert newest is not None
    assert (newest.step, newest.notes, newest.model["w"].tolist()) == (10, {"step": 10}, [10, 10, 10])
    assert notices == []
    path = tmp_path / names[1]
    path.write_bytes(path.read_bytes()[:-5])
    before = newest_state(tmp_path, notify=notices.append)
    assert before is not None
    assert before.step == 2
    assert "damaged" in notices[0]
    assert newest_state(tmp_path / "empty", notify=notices.append) is None


def test_moments_are_restored_to_their_parameters():
    def model_and_optimizer():
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = model_and_optimizer()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    other, empty = model_and_optimizer()
    other.load_state_dict(model.state_dict())
    load_optimizer(other, empty, optimizer_tensors(model, optimizer))
    for m, o in ((model, optimizer), (other, empty)):
        o.zero_grad()
        m(torch.ones(1, 3)).sum().backward()
        o.step()
    assert torch.equal(model.weight, other.weight)


def test_tensors_that_do_not_fit_are_listed():
    tensors = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_tensors(nn.Linear(3, 2), tensors, source="file")
    assert str(error.value) == (
        "file: the weights do not fit the model: 1 missing (bias); 1 unexpected (extra); "
        "1 of another shape (weight)"
    )


def test_a_header_of_a_newer_or_damaged_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    header = Weights(kind="pretrain", settings={}, classes=None, recipe="r", step=3).metadata()
    save_file({}, path, metadata=header)
    assert read_header(path).step == 3
    save_file({}, path, metadata={**header, "version": "2"})
    with pytest.raises(CheckpointError, match="written by a newer everest"):
        read_header(path)
    save_file({}, path, metadata={**header, "step": "many"})
    with pytest.raises(CheckpointError, match="its header is damaged"):
        read_weights(path)
