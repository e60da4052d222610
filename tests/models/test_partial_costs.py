"""Partial training costs what is counted: state of trained weights, activations of blocks that learn."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from saved import saved_bytes_per_clip, without_numbers
from small_runs import run
from steps import clips_for, our_pass
from torch.utils.flop_counter import FlopCounterMode

from everest.config.recipe import load_recipe
from everest.models.memory import training_bytes
from everest.models.partial import choose_trained, frozen_layers
from everest.profiling.profile import stage_cost, stage_spec

DEPTH = 6
BASE = ("model.backbone=vit-b", f"model.depth={DEPTH}", "finetune.drop_path=0.0")


@pytest.mark.parametrize(
    ("bytes_per_value", "settings"),
    [
        (2, ()),
        (2, ("finetune.freeze=embedding",)),
        (2, ("finetune.freeze=first:3",)),
        (2, ("finetune.freeze=first:5", "model.pooling=class-attention")),
        (2, ("finetune.lora.rank=8",)),
        (4, ("finetune.freeze=first:3",)),
        (4, ("finetune.lora.rank=8",)),
    ],
)
def test_the_estimate_is_what_a_step_saves(bytes_per_value: int, settings: tuple[str, ...]):
    recipe = load_recipe("k400", overrides=[*BASE, *settings])
    spec, section = stage_spec(recipe, "finetune"), recipe.finetune
    model = spec.build().train()
    choose_trained(model, section)
    dtype = torch.float32 if bytes_per_value == 4 else torch.bfloat16
    with without_numbers(model):
        found = saved_bytes_per_clip(model, our_pass(model, dtype), clips_for(model, 2))
    clip = 10 * 3 * spec.frames * spec.size[0] * spec.size[1]  # twice as bytes, twice as float32
    estimate = training_bytes(spec, bytes_per_value, frozen_layers=frozen_layers(section, DEPTH))
    assert estimate == pytest.approx(found + clip, rel=0.1)


def cost(*settings: str, value_bytes: int = 2):
    return stage_cost(load_recipe("k400", overrides=[*BASE, *settings]), "finetune", value_bytes=value_bytes)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("finetune.freeze=embedding",),
        ("finetune.freeze=first:3",),
        ("finetune.freeze=encoder",),
        ("train.checkpointing=true",),
        ("train.checkpointing=true", "finetune.freeze=first:3"),
        ("train.checkpointing=true", "finetune.freeze=encoder"),
    ],
)
def test_the_count_of_both_passes_is_what_a_step_computes(settings: tuple[str, ...]):
    recipe = load_recipe("k400", overrides=[*BASE, *settings])
    model = stage_spec(recipe, "finetune").build().train()
    choose_trained(model, recipe.finetune)
    step = our_pass(model, torch.bfloat16)
    with without_numbers(model), FlopCounterMode(display=False) as counter:
        step(clips_for(model, 1)).backward()
    counted = cost(*settings).dump()["training_gflops"]
    assert counted == pytest.approx(counter.get_total_flops() / 1e9, rel=0.05)


def test_both_passes_of_adapters_are_not_counted():
    assert cost("finetune.lora.rank=8").dump()["training_gflops"] is None
    shown = run("profile", "--recipe", "k400", *(part for s in BASE for part in ("--set", s)))
    with_adapters = run("profile", "--recipe", "k400", "--set", "finetune.lora.rank=8")
    for text, cells in ((shown, 2), (with_adapters, 1)):
        (line,) = [line for line in text.splitlines() if "GFLOPs forward and backward" in line]
        assert len([cell for cell in line.split()[4:] if cell != "-"]) == cells


def test_frozen_blocks_save_nothing_and_have_no_state():
    costs = [cost(f"finetune.freeze=first:{n}") for n in range(1, DEPTH)]
    bytes_of = [found.activation_bytes_per_clip for found in costs]
    assert len({before - after for before, after in pairwise(bytes_of)}) == 1
    whole, block = cost(), costs[0].trained_parameters - costs[1].trained_parameters
    assert block == 12 * 768**2 + 12 * 768  # four matrices, and vectors: the keys have no bias
    assert all(found.parameters == whole.parameters == whole.trained_parameters for found in costs)
    for found in costs:
        assert found.model_state["weights"] == 4 * found.parameters
        assert found.model_state["gradients"] == 4 * found.trained_parameters
        assert found.model_state["moments"] == 8 * found.trained_parameters


def test_a_frozen_encoder_computes_a_block_at_a_time():
    head = cost("finetune.freeze=encoder")
    assert head.trained_parameters == 2 * 768 + 768 * 400 + 400
    assert head.activation_bytes_per_clip == cost("finetune.freeze=first:5").activation_bytes_per_clip


@pytest.mark.parametrize(("value_bytes", "copies"), [(2, 0), (4, DEPTH * 4 * 768**2)])
def test_adapters_are_counted_with_the_matrices_that_float32_keeps(value_bytes: int, copies: int):
    found, whole = cost("finetune.lora.rank=8", value_bytes=value_bytes), cost(value_bytes=value_bytes)
    adapters = DEPTH * 8 * ((768 + 3 * 768) + (768 + 768))  # qkv and proj
    assert found.parameters == whole.parameters + adapters
    assert found.trained_parameters == adapters + 2 * 768 + 768 * 400 + 400
    assert found.model_state["weights"] == 4 * (found.parameters + copies)
    assert found.model_state["moments"] == 8 * found.trained_parameters


def test_profile_shows_the_trained_parameters_of_partial_training():
    options = ["profile", "--backbone", "vit-tiny", "--set", "finetune.lora.rank=4"]
    stages = json.loads(run(*options, "--json"))["stages"]
    assert stages["pretrain"]["trained_parameters"] == stages["pretrain"]["parameters"]
    assert stages["finetune"]["trained_parameters"] < stages["finetune"]["parameters"] / 20
    assert "trained_parameters" not in stages["eval"]
    assert "trained parameters" in run(*options)
    assert "trained parameters" not in run(*options[:3])
