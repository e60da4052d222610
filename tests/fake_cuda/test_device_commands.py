"""Commands on a GPU that computes nothing: they end well, and the host waits in known places only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from device_runs import Ended, Process, run_everest

from everest.engine.state import SavedState
from everest.system.run_folder import RunFolder

Train = Callable[..., Ended]

# Where the host waits for the device in a training step, in order. A shorter list is a faster step.
STEP_WAITS = ["system.compute HostCopy.read"]  # for the numbers of the step before


def assert_all_waits_are_named(process: Process) -> None:
    """The runtime has counted as many waits in each step as were found by name."""
    for step in process.steps:
        counted = sum(step.counts.get(f"{kind}_waits", 0) for kind in ("stream", "event", "device"))
        assert len(step.waits) == counted, step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("pretrain", []),
        ("finetune", ["--init", "none", "--set", "data.val=null"]),
        ("train-tokenizer", ["--set", "tokenizer.epochs=1", "--set", "tokenizer.batch_size=1"]),
    ],
)
def test_training_ends_well_and_waits_in_known_places(train, tmp_path, command, options):
    ended = train(command, *options)
    (process,) = ended.processes
    assert "; bf16" in ended.stderr
    assert ended.step.waits == STEP_WAITS
    assert ended.step.counts["event_waits"] == 1  # the device has its next step already
    assert "to_device_pageable" not in ended.step.counts
    assert_all_waits_are_named(process)
    rows = [row for row in RunFolder(tmp_path / command).rows() if "lr" in row]
    assert len(rows) == len(process.steps)
    assert all(row["loss"] is not None for row in rows)  # it is finite


@pytest.mark.slow
def test_adapters_are_trained_compiled_or_not_without_further_waits(train, autoencoder_run, tmp_path):
    options = ["--init", autoencoder_run, "--overwrite", "--set", "data.val=null"]
    plain, blocks, whole = (
        train("finetune", *options, "--set", "finetune.lora.rank=4", "--set", f"train.compile={how}").step
        for how in ("false", "auto", "true")
    )
    assert plain.waits == blocks.waits == whole.waits == STEP_WAITS
    assert whole.counts["launches"] < plain.counts["launches"]
    # A compiled block saves half of its activations. It computes the adapters' sums again in the backward
    # pass: 46 products for 36. Without these, blocks launch less than eager code, too.
    again = blocks.counts["products"] - plain.counts["products"]
    assert blocks.counts["launches"] - again < plain.counts["launches"]


@pytest.mark.slow
def test_evaluation_and_probes_end_well(device, classifier_run, autoencoder_run, tmp_path):
    shown = run_everest(device, "eval", "-c", classifier_run, "--json")
    assert shown.code == 0, shown.stderr
    assert json.loads(shown.stdout)["videos"] == 4
    assert shown.processes[0].counts["launches"] > 0
    probed = run_everest(device, "probe", "-c", autoencoder_run, "--set", "data.train=train.csv", "--json")
    assert probed.code == 0, probed.stderr
    assert probed.processes[0].counts["launches"] > 0


@pytest.mark.slow
def test_a_run_with_compilation_ends_well_and_launches_less(train: Train, tmp_path: Path):
    plain, blocks, whole = (
        train("pretrain", "--overwrite", "--set", f"train.compile={how}").step
        for how in ("false", "auto", "true")
    )
    assert plain.waits == blocks.waits == whole.waits == STEP_WAITS
    assert "triton" not in plain.counts
    assert whole.counts["launches"] < blocks.counts["launches"] < plain.counts["launches"]


@pytest.mark.slow
def test_a_gpu_without_bf16_trains_in_fp16_with_a_loss_scale(train: Train, tmp_path: Path):
    ended = train("pretrain", extra={"FAKE_CUDA_CAPABILITY": "7"})
    assert "; fp16; " in ended.stderr
    assert not [name for name in ended.step.counts if "bf16" in name.lower() or "bfloat16" in name.lower()]
    newest = max((tmp_path / "pretrain" / "state").glob("step-*.safetensors"))
    assert SavedState.read(newest).notes["scaler"] is not None
