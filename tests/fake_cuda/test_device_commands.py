"""Commands on a GPU that computes nothing: they end well, and the host waits in known places only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from device_build import Device
from device_runs import Ended, Process, run_everest

from everest.system.run_folder import RunFolder

Train = Callable[..., Ended]

# Where the host waits for the device in a training step, in order. A shorter list is a faster step.
NORM = "train.update Updater.clip_gradients"  # reads the norm of the gradients
RECORD = "train.step_record StepRecord.reduce_over_processes"
STEP_WAITS = [
    NORM,
    RECORD,  # copies two numbers to the device
    RECORD,  # reads the losses
]
TOKENIZER = "tokenizer.network AdaptiveTokenizer.forward"  # copies one flag to the device, in each pass
TOKENIZER_STEP_WAITS = [TOKENIZER, *STEP_WAITS]


def assert_all_waits_are_named(process: Process) -> None:
    """The runtime has counted as many waits in each step as were found by name."""
    for step in process.steps:
        counted = sum(step.counts.get(f"{kind}_waits", 0) for kind in ("stream", "event", "device"))
        assert len(step.waits) == counted, step


@pytest.mark.parametrize(
    ("command", "options", "waits", "pageable"),
    [
        ("pretrain", [], STEP_WAITS, 1),
        ("finetune", ["--init", "none"], STEP_WAITS, 1),
        ("train-tokenizer", [], TOKENIZER_STEP_WAITS, 2),
    ],
)
def test_training_ends_well_and_waits_in_known_places(
    train: Train, tmp_path: Path, command: str, options: list[str], waits: list[str], pageable: int
):
    ended = train(command, *options)
    (process,) = ended.processes
    assert ended.step.waits == waits
    # Batches come from pinned memory; what is pageable are the copies that wait.
    assert ended.step.counts["to_device_pageable"] == pageable
    assert_all_waits_are_named(process)
    rows = [row for row in RunFolder(tmp_path / command).rows() if "lr" in row]
    assert len(rows) == len(process.steps) == 6
    assert all(row["loss"] is not None for row in rows)  # it is finite


@pytest.mark.slow
def test_evaluation_and_probes_end_well(
    device: Device, classifier_run: Path, autoencoder_run: Path, tmp_path: Path
):
    shown = run_everest(device, "eval", "-c", classifier_run, "--json")
    assert shown.code == 0, shown.stderr
    assert json.loads(shown.stdout)["videos"] == 4
    assert shown.processes[0].counts["launches"] > 0
    probed = run_everest(device, "probe", "-c", autoencoder_run, "--set", "data.train=train.csv", "--json")
    assert probed.code == 0, probed.stderr
    assert probed.processes[0].counts["launches"] > 0


@pytest.mark.slow
def test_a_run_with_compilation_ends_well_and_launches_less(train: Train, tmp_path: Path):
    plain = train("pretrain").step
    compiled = train("pretrain", "--overwrite", "--set", "train.compile=true").step
    assert compiled.waits == STEP_WAITS
    assert compiled.counts["triton"] > 0
    assert compiled.counts["launches"] < 0.7 * plain.counts["launches"]
