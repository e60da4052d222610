"""Damaged states are noticed, set aside and never resumed from, whether they have a checksum or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import TWO, everest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import called, equal, metrics, refused, small_recipe, weights
from torch import Tensor

from everest.errors import CheckpointError
from everest.train.saved_state import SavedState, read_state

Tensors = dict[str, Tensor]
Header = dict[str, str]
LAST = "step-000000003"
WEIGHT = "encoder.blocks.0.attn.qkv.weight"


@pytest.fixture
def run(tmp_path: Path, autoencoder_run: Path) -> Path:
    """A finished run of 3 steps with its states of steps 2 and 3."""
    return Path(shutil.copytree(autoencoder_run, tmp_path / "run"))


@pytest.fixture
def command(run: Path, tmp_path: Path, clip_files: Path) -> list[object]:
    return ["pretrain", "--recipe", small_recipe(tmp_path, clip_files), "-q", "-o", run]


def rewrite(path: Path, change: Callable[[Tensors, Header], None], *, checksum: bool = False) -> None:
    """Change a state as a fault would, in the format of earlier versions, which had no checksum."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    if not checksum:
        header.pop("sha256")
    change(tensors, header)
    save_file(tensors, path, metadata=header)


def nothing(tensors: Tensors, header: Header) -> None:
    pass


def nan_moment(tensors: Tensors, header: Header) -> None:
    tensors[f"optimizer/{WEIGHT}/exp_avg"][0, 0] = torch.nan


def infinite_weight(tensors: Tensors, header: Header) -> None:
    tensors[f"model/{WEIGHT}"][0, 0] = torch.inf


def half_weights(tensors: Tensors, header: Header) -> None:
    tensors |= {name: value.half() for name, value in tensors.items() if name.startswith("model/")}


def moment_of_another_shape(tensors: Tensors, header: Header) -> None:
    tensors[f"optimizer/{WEIGHT}/exp_avg"] = torch.zeros(3)


def no_moments_of_one(tensors: Tensors, header: Header) -> None:
    for name in [name for name in tensors if name.startswith(f"optimizer/{WEIGHT}/")]:
        del tensors[name]


def no_moments(tensors: Tensors, header: Header) -> None:
    for name in [name for name in tensors if name.startswith("optimizer/")]:
        del tensors[name]


def another_name(tensors: Tensors, header: Header) -> None:
    tensors["optimizer/\u00fc"] = tensors.pop(f"optimizer/{WEIGHT}/step")


def weight_of_another_name(tensors: Tensors, header: Header) -> None:
    tensors["model/x"] = tensors.pop(f"model/{WEIGHT}")


def notes_that_are_no_json(tensors: Tensors, header: Header) -> None:
    header["notes"] = header["notes"][:-1]


def notes_nested_too_deeply(tensors: Tensors, header: Header) -> None:
    header["notes"] = "[" * 100_000


def notes_of_other_types(tensors: Tensors, header: Header) -> None:
    header["notes"] = json.dumps({"videos": {"asked": "x", "bad": 0}, "skipped": 0, "scaler": None})


def missing_notes(tensors: Tensors, header: Header) -> None:
    header["notes"] = "{}"


def another_step(tensors: Tensors, header: Header) -> None:
    header["step"] = "2"


FAULTS = (
    *(nan_moment, infinite_weight, half_weights, moment_of_another_shape, no_moments_of_one, no_moments),
    *(another_name, weight_of_another_name, another_step),
    *(notes_that_are_no_json, notes_nested_too_deeply, notes_of_other_types, missing_notes),
)


def test_a_state_of_an_earlier_version_is_resumed(command, run: Path, autoencoder_run: Path):
    (run / "state" / f"{LAST}.safetensors").unlink()
    rewrite(run / "state" / "step-000000002.safetensors", nothing)
    assert "damaged" not in called(*command).stderr
    assert equal(weights(run), weights(autoencoder_run))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_state_without_a_checksum_is_set_aside(command, run: Path, autoencoder_run: Path, fault):
    state = run / "state" / f"{LAST}.safetensors"
    rewrite(state, fault)
    damaged = state.read_bytes()
    shown = called(*command).stderr
    assert f"{state}: damaged, skipped (" in shown
    assert f"{LAST}.safetensors is kept as {LAST}.damaged" in shown
    assert state.with_suffix(".damaged").read_bytes() == damaged
    assert equal(weights(run), weights(autoencoder_run))
    assert metrics(run) == metrics(autoencoder_run)


def test_one_changed_bit_of_a_weight_or_moment_is_noticed(command, run: Path, autoencoder_run: Path):
    state = run / "state" / f"{LAST}.safetensors"

    def flip(tensors: Tensors, header: Header) -> None:
        tensors[f"model/{WEIGHT}"].view(torch.int32)[0, 0] ^= 1

    rewrite(state, flip, checksum=True)
    assert "do not have the checksum" in called(*command).stderr
    assert equal(weights(run), weights(autoencoder_run))


def test_states_that_are_damaged_again_are_all_kept(command, run: Path):
    for _ in range(3):
        (run / "state" / f"{LAST}.safetensors").write_bytes(b"")
        called(*command)
    names = sorted(path.name for path in (run / "state").iterdir())
    kept = [f"{LAST}.damaged", f"{LAST}.damaged-2", f"{LAST}.damaged-3"]
    assert names == ["step-000000002.safetensors", *kept, f"{LAST}.safetensors"]


def test_without_an_intact_state_the_command_says_what_to_do(command, run: Path):
    for state in (run / "state").iterdir():
        rewrite(state, nan_moment)
    shown = refused(*command, code=6)
    assert "all its states are damaged" in shown
    assert "no finite number" in shown
    assert "put back a copy of one, or start the run again with --overwrite" in shown
    assert len(list((run / "state").glob("step-*.safetensors"))) == 2


@given(bit=st.integers(min_value=0))
def test_no_bit_of_a_state_changes_unnoticed(tmp_path_factory: pytest.TempPathFactory, bit: int):
    folder = tmp_path_factory.mktemp("state")
    tensors = {"model/w": torch.rand(3), "optimizer/w/step": torch.tensor(2.0), "b": torch.ones(1).bfloat16()}
    notes = {"videos": {"asked": 8, "bad": 0}, "skipped": 0, "scaler": None}
    SavedState(step=7, tensors=tensors, notes=notes).save(folder, keep=1)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_state(path)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_two_processes_agree_on_the_state(tmp_path: Path, clip_files: Path, shard: str):
    recipe = small_recipe(tmp_path, clip_files)
    command = ["pretrain", "--recipe", recipe, *TWO, "--set", f"train.shard={shard}"]
    everest(*command, "-o", tmp_path / "whole")
    parts = Path(shutil.copytree(tmp_path / "whole", tmp_path / "parts"))
    state = parts / "state" / f"{LAST}.safetensors"
    rewrite(state, nan_moment)
    shown = everest(*command, "-o", parts).stderr
    assert shown.count("damaged, skipped") == 1
    assert "resuming after step 2 of 3" in shown
    assert state.with_suffix(".damaged").is_file()
    assert equal(weights(parts), weights(tmp_path / "whole"))
    for path in (parts / "state").glob("step-*.safetensors"):
        path.write_bytes(b"")
    shown = everest(*command, "-o", parts, code=6).stderr
    assert shown.count("all its states are damaged") == 1


def test_only_the_names_that_a_run_writes_are_states(run: Path, command: list[object]):
    state = run / "state" / f"{LAST}.safetensors"
    shutil.copy(state, run / "state" / "step-3.safetensors")
    shutil.copy(state, run / "state" / "step-\u0663.safetensors")
    before = weights(run)
    (run / "model.safetensors").unlink()
    called(*command)
    assert equal(weights(run), before)
    assert state.is_file()


def test_a_link_to_nothing_is_a_damaged_state(run: Path, command: list[object]):
    before = weights(run)
    (run / "state" / f"{LAST}.safetensors").unlink()
    (run / "state" / f"{LAST}.safetensors").symlink_to(run / "nothing")
    ended = called(*[part for part in command if part != "-q"])
    assert "resuming after step 2 of 3" in ended.stderr
    assert (run / "state" / f"{LAST}.damaged").is_symlink()
    assert equal(weights(run), before)


@pytest.mark.parametrize("plan", [-1, True, {"videos": 4}, {"videos": 4, "samples": 3, "processes": 1}])
def test_a_damaged_plan_is_reported(run: Path, command: list[object], plan: object):
    environment = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**environment, "plan": plan}))
    assert refused(*command, code=2).startswith(f"error: {run}/env.json: damaged (plan: ")


def test_a_damaged_copy_of_the_recipe_is_not_taken_for_the_users(run: Path, command: list[object]):
    (run / "recipe.yaml").write_text("summary: [")
    assert "the run's copy of its settings is damaged: restore it, or " in refused(*command, code=2)


def test_a_run_of_another_command_is_named(run: Path, command: list[object]):
    message = refused("finetune", "--init", "none", *command[1:], code=2)
    assert message.startswith(f"error: --output {run}: holds a run of pretrain, not of finetune; ")
