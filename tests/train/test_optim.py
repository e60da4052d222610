"""Parameter groups: layers, decay and learning rates as in the released programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import grouped

import everest
from everest.foreign.translation import our_name


@pytest.mark.parametrize(
    ("name", "backbone", "layer_decay"),
    [
        ("finetune_vit_base_layer_decay_0.75_wd_0.05", "vit-b", 0.75),
        ("finetune_vit_small_layer_decay_0.7_wd_0.05_scales_only", "vit-s", 0.7),
        ("pretrain_small_wd_0.05", "vit-s", 1.0),
    ],
)
def test_groups_equal_the_released_ones(
    golden: Callable[[str], Path], name: str, backbone: str, layer_decay: float
):
    official_groups = json.loads(golden("optim.json").read_text())[name]
    kind = "pretrain" if name.startswith("pretrain") else "classifier"
    with torch.device("meta"):
        model = everest.create_model(backbone, kind=kind, num_classes=400)
    groups = grouped(model, layer_decay=layer_decay)
    assert len(groups) == len(official_groups) == len(dict(model.named_parameters()))
    for official, value in official_groups.items():
        decay, scale = groups[our_name(official, kind)]
        expected = value["lr_scale"] if isinstance(value, dict) else value
        assert scale == pytest.approx(expected, abs=1e-9), official
        if isinstance(value, dict):
            assert decay == value["weight_decay"], official


def test_frozen_parameters_are_in_no_group():
    with torch.device("meta"):
        model = everest.create_model("vit-tiny", kind="classifier", num_classes=2)
    model.encoder.requires_grad_(False)
    assert set(grouped(model)) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_learned_positions_and_class_token_belong_to_the_embedding_and_do_not_decay():
    options = {"positions": "learned-separable", "class_token": True, "depth": 2}
    model = everest.create_model("vit-tiny", kind="classifier", num_classes=2, **options)
    groups = grouped(model, layer_decay=0.5)
    of_embedding = groups["encoder.patch_embed.proj.bias"]
    assert of_embedding == (0, 0.125)
    names = ("class_token", "position.class_token", "position.spatial", "position.temporal")
    assert {groups[f"encoder.{name}"] for name in names} == {of_embedding}
    autoencoder = grouped(everest.create_model("vit-tiny", kind="pretrain", **options))
    assert all(autoencoder[f"{part}.position.spatial"] == (0, 1) for part in ("encoder", "decoder"))
