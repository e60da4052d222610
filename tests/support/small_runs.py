"""Runs of a tiny model for tests that use one, and commands as a user calls them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from everest.config.recipe import load_recipe
from everest.errors import RecipeError
from everest.system.run_folder import RunFolder
from everest_cli.main import app


def called(*words: object, code: int = 0) -> Result:
    """What a command prints; it must end with `code`. Its first word may be several: "runs list"."""
    first, *others = words
    result = CliRunner().invoke(app, [*str(first).split(), *map(str, others)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run(*words: object, code: int = 0) -> str:
    """What a command prints on stdout."""
    return called(*words, code=code).stdout


def json_of(*words: object, code: int = 0) -> Any:
    """What a command prints with --json."""
    return json.loads(run(*words, "--json", code=code))


def refused(*words: object, code: int) -> str:
    """The message of a command that must end with `code`, print nothing on stdout and show no traceback."""
    result = called(*words, code=code)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def sets(*settings: str) -> list[str]:
    """The options that set values of a recipe: "key=value"."""
    return [f"--set={setting}" for setting in settings]


def onnx_session(path: Path) -> Any:
    """An ONNX file, opened by onnxruntime on the CPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def problems_of(recipe: str | Path, *overrides: str) -> list[str]:
    """The lines of the error of a recipe that is not valid."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides=overrides)
    return str(caught.value).splitlines()


def small_recipe(folder: Path, root: Path, changes: dict[str, str] | None = None, text: str = "") -> Path:
    """A recipe whose data is in `root`, as the videos of `clip_files`, with parts of its text replaced."""
    text = text or RECIPE
    for before, after in (changes or {}).items():
        text = text.replace(before, after)
    path = folder / "tiny.yaml"
    path.write_text(text.replace("data: {", f'data: {{root: "{root}", '))
    return path


def small_run(folder: Path, clip_files: Path, command: str) -> Path:
    """A run folder: a classifier of two classes, or the autoencoder of `pretrain`."""
    options = ["--recipe", small_recipe(folder, clip_files), "-o", folder / command, "-q"]
    called(command, *options, *(["--init", "none"] if command == "finetune" else []))
    return folder / command


def killed_copy(folder: Path, copy: Path) -> Path:
    """A copy of a finished run as a kill in its last step leaves it: without its last state and weights."""
    shutil.copytree(folder, copy)
    max((copy / "state").glob("step-*.safetensors")).unlink()
    (copy / "model.safetensors").unlink()
    return copy


# Settings with which fine-tuning moves weights by no more than 1e-6.
STILL = sets("finetune.base_lr=1e-9", "finetune.min_lr=0")
RECIPE = """
summary: small enough for a test
data: {classes: null, num_classes: 2, frames: 4, size: 32, flip: true, val: train.csv, test: train.csv}
model: {backbone: vit-tiny, tubelet: [2, 8, 8], width: 24, depth: 2, heads: 2, decoder_width: 16,
        decoder_heads: 2, decoder_depth: 1}
train: {workers: 0, micro_batch: 2, precision: fp32, save_every: 1}
pretrain: {stride: 2, epochs: 3, warmup_epochs: 1, batch_size: 4, base_lr: 0.1}
finetune: {stride: 2, epochs: 3, warmup_epochs: 1, batch_size: 4, base_lr: 0.1, drop_path: 0.5, mixup: 0.8,
           cutmix: 1.0}
eval: {clips: 2, crops: 3}
"""
# Annotations of the videos of `clip_files`, with names as another computer wrote them.
BOUTS = """\
video,start,end,label
C:\\lab\\clip0.mp4,0,1,walk
C:\\lab\\clip0.mp4,1,2,run
clip1,0.5,1,walk
clip9.mp4,0,1,walk
"""
SAME = ("step", "epoch", "loss", "lr", "grad_norm", "val_top1")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run without times and memory."""
    return [{key: row[key] for key in SAME if key in row} for row in RunFolder(folder).rows()]


def logged(folder: Path, name: str = "loss") -> list[Any]:
    """The values of a name in the metrics of a run, in the order of its rows."""
    return [row[name] for row in RunFolder(folder).rows() if name in row]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_run(first: Path, second: Path) -> bool:
    """Whether two runs have the same metrics and weights, to the bit."""
    return metrics(first) == metrics(second) and equal(weights(first), weights(second))


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}
