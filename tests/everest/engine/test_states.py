import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import TWO, everest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import called, contents, equal, refused, same_run, sets, weights
from torch import Tensor

from everest.engine.state import _checksum

Tensors = dict[str, Tensor]
Header = dict[str, str]
Fault = Callable[[Tensors, Header], object]
LAST = "step-000000003"
WEIGHT = "encoder.blocks.0.attn.qkv.weight"


@pytest.fixture
def run(tmp_path: Path, autoencoder_run: Path) -> Path:
    """A finished run of 3 steps with its states of steps 2 and 3."""
    return Path(shutil.copytree(autoencoder_run, tmp_path / "run"))


@pytest.fixture
def command(run: Path, recipe: Path) -> list[object]:
    return ["pretrain", "--recipe", recipe, "-q", "-o", run]


def rewrite(path: Path, change: Fault, *, checksum: bool = False) -> None:
    """Change a state as a fault would; `checksum`: after its checksum was computed, else before."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    change(tensors, header)
    if not checksum:
        texts = {name: text for name, text in header.items() if name != "sha256"}
        header["sha256"] = _checksum(texts, tensors) if texts.keys() == {"format", "step", "notes"} else ""
    save_file(tensors, path, metadata=header)


def moments(tensors: Tensors, of: str = "") -> list[str]:
    return [name for name in tensors if name.startswith(f"optimizer/{of}")]


def set_first(name: str, value: float) -> Fault:
    return lambda tensors, header: tensors[name].__setitem__((0, 0), value)


def without(of: str) -> Fault:
    return lambda tensors, header: [tensors.pop(name) for name in moments(tensors, of)]


def renamed(old: str, new: str) -> Fault:
    return lambda tensors, header: tensors.update({new: tensors.pop(old)})


def with_header(**values: str) -> Fault:
    return lambda tensors, header: header.update(values)


NAN_MOMENT = set_first(f"optimizer/{WEIGHT}/exp_avg", torch.nan)
FAULTS: dict[str, Fault] = {
    "nan moment": NAN_MOMENT,
    "infinite weight": set_first(f"model/{WEIGHT}", torch.inf),
    "moment of another shape": lambda them, _: them.update({f"optimizer/{WEIGHT}/exp_avg": torch.zeros(3)}),
    "no moments of one": without(f"{WEIGHT}/"),
    "no moments": without(""),
    "another name": renamed(f"optimizer/{WEIGHT}/step", "optimizer/\u00fc"),
    "weight of another name": renamed(f"model/{WEIGHT}", "model/x"),
    "another step": with_header(step="2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_was_damaged_before_its_checksum_is_set_aside(command, run, autoencoder_run, fault):
    state = run / "state" / f"{LAST}.safetensors"
    rewrite(state, FAULTS[fault])
    damaged = state.read_bytes()
    shown = called(*command).stderr
    assert f"{state}: damaged, skipped (" in shown
    assert f"{LAST}.safetensors is kept as {LAST}.damaged" in shown
    assert state.with_suffix(".damaged").read_bytes() == damaged
    assert same_run(run, autoencoder_run)


def test_one_changed_bit_of_a_weight_or_moment_is_noticed(command, run: Path, autoencoder_run: Path):
    state = run / "state" / f"{LAST}.safetensors"

    def flip(tensors: Tensors, header: Header) -> None:
        tensors[f"model/{WEIGHT}"].view(torch.int32)[0, 0] ^= 1

    rewrite(state, flip, checksum=True)
    assert "checksum mismatch" in called(*command).stderr
    assert equal(weights(run), weights(autoencoder_run))


def test_without_an_intact_state_the_command_says_what_to_do(command, run: Path):
    for state in (run / "state").iterdir():
        rewrite(state, NAN_MOMENT)
    before = contents(run)
    shown = refused(*command, code=6)
    assert "all saved states are damaged" in shown
    assert "no finite number" in shown
    assert "restore a copy of one, or start over with --overwrite" in shown
    assert contents(run) == before


@pytest.mark.slow
def test_two_processes_agree_on_the_state(tmp_path: Path, recipe: Path):
    command = ["pretrain", "--recipe", recipe, *TWO]
    everest(*command, "-o", tmp_path / "whole")
    parts = Path(shutil.copytree(tmp_path / "whole", tmp_path / "parts"))
    state = parts / "state" / f"{LAST}.safetensors"
    rewrite(state, NAN_MOMENT)
    shown = everest(*command, "-o", parts).stderr
    assert shown.count("damaged, skipped") == 1
    assert "resuming after step 2 of 3" in shown
    assert state.with_suffix(".damaged").is_file()
    assert equal(weights(parts), weights(tmp_path / "whole"))
    for path in (parts / "state").glob("step-*.safetensors"):
        path.write_bytes(b"")
    shown = everest(*command, "-o", parts, code=6).stderr
    assert shown.count("all saved states are damaged") == 1


def test_a_run_resumes_with_less_memory_to_the_same_weights(run, command, autoencoder_run):
    (run / "state" / f"{LAST}.safetensors").unlink()
    (run / "model.safetensors").unlink()
    shown = refused(*command, "--set", "train.micro_batch=4", code=2)
    assert f"--output {run}: its micro-batches have 2 clips, now 4, which would" in shown
    assert "set train.micro_batch=2, with train.checkpointing=true if memory is short, or" in shown
    called(*command, *sets("train.micro_batch=auto", "train.checkpointing=true"))
    assert same_run(run, autoencoder_run)


def test_another_command_is_reported(run, command):
    message = refused("finetune", "--init", "none", *command[1:], code=2)
    assert message.startswith(
        f'error: --output {run}: holds a run with different settings: command ("pretrain", now "finetune")'
    )
