"""On a GPU that computes nothing, commands end well, and the host waits in known places only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_runs import ROOT, Device, Ended, run_command, run_everest
from small_runs import sets

from everest.config.recipe import load_recipe
from everest.engine.state import SavedState
from everest.models.memory import training_bytes
from everest.profiling.profile import make_stage_spec
from everest.system.run_folder import RunFolder

Train = Callable[..., Ended]

# Where the host waits for the device in a training step, in order. A shorter list is a faster step.
STEP_WAITS = ["system.compute HostCopy.read"]  # for the numbers of the step before
# A step of ViT-B without compilation, in bf16.
BATCH = 32
LAUNCHES = 1170  # 1166 counted
BYTES_PER_CLIP = 64e6  # without the clip itself, from 16 clips to 32; 62.7 MB counted


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
    assert "; bf16" in ended.stderr
    assert ended.step.waits == STEP_WAITS
    assert ended.step.counts["event_waits"] == 1  # the device has its next step already
    assert ended.step.counts["to_device_pageable"] == 0
    for step in ended.steps:  # as many waits were counted as were found by name
        assert len(step.waits) == sum(step.counts[f"{kind}_waits"] for kind in ("stream", "event", "device"))
    rows = [row for row in RunFolder(tmp_path / command).rows() if "lr" in row]
    assert len(rows) == len(ended.steps)
    assert all(row["loss"] is not None for row in rows)  # it is finite


@pytest.mark.slow
def test_evaluation_probes_and_adapters_end_well(train, device, classifier_run, autoencoder_run):
    shown = run_everest(device, "eval", "-c", classifier_run, "--json")
    assert shown.code == 0, shown.stderr
    assert json.loads(shown.stdout)["videos"] == 4
    assert shown.counts["launches"] > 0
    probed = run_everest(device, "probe", "-c", autoencoder_run, "--set", "data.train=train.csv", "--json")
    assert probed.code == 0, probed.stderr
    assert probed.counts["launches"] > 0
    options = ("--init", autoencoder_run, "--set", "data.val=null", "--set", "finetune.lora.rank=4")
    assert train("finetune", *options).step.waits == STEP_WAITS


@pytest.mark.slow
def test_a_gpu_without_bf16_trains_in_fp16_with_a_loss_scale(train: Train, tmp_path: Path):
    ended = train("pretrain", extra={"FAKE_CUDA_CAPABILITY": "7"})
    assert "; fp16; " in ended.stderr
    newest = max((tmp_path / "pretrain" / "state").glob("step-*.safetensors"))
    assert SavedState.read(newest).notes["scaler"] is not None


@pytest.mark.slow
def test_launches_and_memory_of_vit_b(device: Device):
    settings = ["model.backbone=vit-b", "train.compile=false"]
    script = str(ROOT / "benchmarks" / "training_step.py")
    ended = run_command(device, [script, "k400", "--batch", str(BATCH), *sets(*settings)])
    assert ended.code == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert found["counts"]["launches"] <= LAUNCHES
    assert found["bytes_per_clip"] <= BYTES_PER_CLIP
    spec = make_stage_spec(load_recipe("k400", overrides=settings), "pretrain")
    clip = 3 * spec.frames * spec.size[0] * spec.size[1]  # as bytes; not in the slope
    assert found["bytes_per_clip"] + clip == pytest.approx(training_bytes(spec, 2), rel=0.1)
