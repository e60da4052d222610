"""Adapters: nothing changes before training, and merged weights compute the same to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import grouped, tiny
from torch import Tensor, nn

from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.models.partial import LowRank, choose_trained, merged

ALL = ("qkv", "proj", "fc1", "fc2")
PRECISIONS = [torch.float32, torch.bfloat16]


def classifier(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = tiny("classifier", num_classes=3, **options).eval()
    nn.init.normal_(model.head.weight)
    return model


def adapted(model: nn.Module, *, trained: bool = False, **options: object) -> nn.Module:
    """A copy with adapters; `trained`: with an arbitrary B."""
    copied = copy.deepcopy(model)
    choose_trained(copied, FinetuneSettings(lora=LoraSettings(rank=4, **options)))
    for module in copied.modules():
        if trained and isinstance(module, LowRank):
            nn.init.normal_(module.b, std=0.1)
    return copied


def clips() -> Tensor:
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(clips())


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_new_adapters_change_no_bit_and_merged_weights_compute_the_same_bits(dtype: torch.dtype):
    model, fresh = classifier(), classifier()
    for dropout in (0.0, 0.5):
        with_adapters = adapted(model, dropout=dropout, layers=ALL).train()
        assert torch.equal(outputs(with_adapters, dtype), outputs(model, dtype))
    trained = adapted(model, trained=True, layers=ALL)
    fresh.load_state_dict(merged(trained, trained.state_dict()))
    assert torch.equal(outputs(fresh, dtype), outputs(trained, dtype))
    assert not torch.equal(outputs(fresh, dtype), outputs(model, dtype))


def test_layer_decay_holds_for_the_adapters_of_a_block():
    groups = grouped(adapted(classifier()), layer_decay=0.5)
    scales = {name.split(".")[2]: scale for name, (_, scale) in groups.items() if "blocks" in name}
    assert scales == {"0": 0.25, "1": 0.5}
    assert {decay for name, (decay, _) in groups.items() if "blocks" in name} == {0.05}
