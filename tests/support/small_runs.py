"""Runs of a tiny model for tests that use one, and commands as a user calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from everest.system.run_folder import RunFolder
from everest_cli.main import app


def called(*arguments: object, code: int = 0) -> Any:
    """What a command said; it must end with `code`."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def small_recipe(folder: Path, clip_files: Path) -> Path:
    """A recipe whose data is the videos of `clip_files`."""
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.replace("data: {", f'data: {{root: "{clip_files}", '))
    return path


def small_run(folder: Path, clip_files: Path, command: str) -> Path:
    """A run folder: a classifier of two classes, or the autoencoder of `pretrain`."""
    options = ["--recipe", small_recipe(folder, clip_files), "-o", folder / command, "-q"]
    called(command, *options, *(["--init", "none"] if command == "finetune" else []))
    return folder / command


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
SAME = ("step", "epoch", "loss", "lr", "grad_norm", "val_top1")


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints on stdout; it must end with `code`."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run without times and memory."""
    return [{key: row[key] for key in SAME if key in row} for row in RunFolder(folder).rows()]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refused(*arguments: object, code: int) -> str:
    """The message of a command that must end with `code`, print nothing on stdout and show no traceback."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr
