"""The cost of a full-size step on a GPU, counted on one that computes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from device_build import Device
from device_runs import ROOT, run_command

import everest
from everest.config.recipe import load_recipe
from everest.models.memory import training_bytes
from everest.profiling.profile import stage_spec

# A step of ViT-B without compilation, in bf16.
BATCH = 32
LAUNCHES = 1170  # 1166 counted
BYTES_PER_CLIP = 64e6  # without the clip itself, from 16 clips to 32; 62.7 MB counted


def counted_step(device: Device, *options: str) -> dict[str, Any]:
    script = str(ROOT / "benchmarks" / "counted_step.py")
    ended = run_command(
        device, [script, "k400", "--set", "model.backbone=vit-b", "--set", "train.compile=false", *options]
    )
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_launches_and_memory_of_vit_b(device: Device):
    found = counted_step(device, "--batch", str(BATCH))
    assert found["counts"]["launches"] <= LAUNCHES
    assert found["bytes_per_clip"] <= BYTES_PER_CLIP
    spec = stage_spec(load_recipe("k400", overrides=["model.backbone=vit-b"]), "pretrain")
    clip = 3 * spec.frames * spec.size[0] * spec.size[1]  # as bytes; not in the slope
    assert found["bytes_per_clip"] + clip == pytest.approx(training_bytes(spec, 2), rel=0.1)


@pytest.mark.slow
def test_the_autoencoder_compiles_to_one_graph():
    model = everest.create_model("vit-tiny", frames=8, size=64, kind="pretrain").train()
    frames, noise = torch.randn(2, 3, 8, 64, 64), torch.rand(2, model.encoder.grid.num_tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch._dynamo.explain(lambda x, y: model(x, noise=y).loss)(frames, noise)
    torch._dynamo.reset()
    assert [str(reason.reason) for reason in found.break_reasons] == []
    assert found.graph_count == 1
