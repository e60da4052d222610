import json
from dataclasses import replace

import pytest
import torch
from foreign import our_name
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import grouped, tiny

import everest
from everest.config.recipe import load_recipe
from everest.config.settings import TrainSettings
from everest.config.stage_settings import AutoencoderSettings, FinetuneSettings
from everest.data.bad_videos import BadVideos
from everest.engine.schedule import (
    StageMemory,
    clips_that_fit,
    learning_rate_advice,
    plan_stage,
    plan_warnings,
)
from everest.engine.setup import measure_memory
from everest.engine.step import TrainedNetwork
from everest.errors import RecipeError

STAGE = AutoencoderSettings(batch_size=192, epochs=4, warmup_epochs=2, base_lr=1e-3, min_lr=1e-5)


def test_batch_is_split_over_processes_and_micro_batches():
    plan = plan_stage(STAGE, num_videos=9537, processes=8, largest_micro_batch=10)
    assert (plan.micro_batch, plan.accumulation) == (8, 3)
    assert (plan.validation_steps, plan.steps) == (49, 196)
    assert plan.peak_lr == pytest.approx(1e-3 * 192 / 256)


@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 300), st.sampled_from([1, 2, 4]))
def test_micro_batches_of_all_processes_add_up_to_the_batch(processes, largest, views):
    stage = replace(STAGE, views_per_decode=views)
    plan = plan_stage(stage, num_videos=1000, processes=processes, largest_micro_batch=largest)
    assert plan.micro_batch * plan.accumulation * plan.processes == 192
    assert plan.micro_batch % views == 0
    assert plan.micro_batch <= max(largest, views)


def test_batches_of_several_views_of_small_sets_and_of_odd_processes():
    several = replace(STAGE, views_per_decode=4)
    plan = plan_stage(several, num_videos=480, processes=1, largest_micro_batch=192)
    assert (plan.videos_per_step, plan.validation_steps) == (48, 10)
    assert plan_stage(STAGE, num_videos=10, processes=1, largest_micro_batch=8).steps == 4  # one an epoch
    with pytest.raises(RecipeError, match="192 does not divide over 5 processes; 190 is the nearest"):
        plan_stage(STAGE, num_videos=1000, processes=5, largest_micro_batch=8)


def test_a_micro_batch_fills_a_fraction_of_the_free_memory_next_to_the_weights():
    memory = StageMemory(state=300, copies=100, per_clip=20)
    assert clips_that_fit(memory, 1000, on_cpu=False) == (800 - 400) // 20
    assert clips_that_fit(memory, 1000, on_cpu=True) == (800 - 400) // 20
    assert clips_that_fit(memory, 2**40, on_cpu=True) == 2**30 // 20  # larger micro-batches are no faster
    assert clips_that_fit(memory, 10, on_cpu=False) == 1
    assert memory.needed(5) == 400


def test_memory_counts_averaged_weights_and_other_networks_that_learn():
    spec, other = tiny("pretrain").spec, torch.nn.Linear(10, 30, bias=False)
    weights = sum(weight.numel() for weight in spec.build().parameters())
    plain = measure_memory(spec, STAGE, TrainSettings(), bytes_per_value=4)
    averaged = measure_memory(spec, STAGE, TrainSettings(ema=0.999), bytes_per_value=4)
    assert averaged == replace(plain, state=plain.state + 4 * weights)
    network = TrainedNetwork(module=other, optimizer=torch.optim.AdamW(other.parameters()), name="other")
    both = measure_memory(spec, STAGE, TrainSettings(), bytes_per_value=4, other_networks=[network])
    assert both == replace(plain, state=plain.state + 3 * 4 * 300)  # gradients and two moments


@given(videos=st.integers(1, 500), steps=st.integers(1, 3000), batch=st.sampled_from([1, 10, 32, 192]))
def test_a_budget_in_steps_counts_every_video_equally_often(videos: int, steps: int, batch: int):
    stage = replace(STAGE, epochs=None, steps=steps, batch_size=batch)
    plan = plan_stage(stage, num_videos=videos, processes=1, largest_micro_batch=batch)
    assert plan.steps == steps
    assert plan.warmup_steps == steps // 20
    assert plan.epochs == (steps - 1) * batch // videos + 1
    assert plan.validation_steps * batch >= videos  # a validation follows a pass over all videos at least
    assert steps / plan.validation_steps <= 40
    assert plan.videos_per_epoch == videos


def test_the_warm_up_of_a_budget_in_steps_can_be_set():
    stage = replace(STAGE, epochs=None, steps=100, warmup_steps=7)
    plan = plan_stage(stage, num_videos=10, processes=1, largest_micro_batch=192)
    assert [plan.lr(6), plan.lr(7)] == pytest.approx([plan.peak_lr, plan.peak_lr])
    for warmup, is_all in ((99, False), (100, True)):
        plan = plan_stage(
            replace(stage, warmup_steps=warmup), num_videos=10, processes=1, largest_micro_batch=8
        )
        warnings = list(plan_warnings(plan, new_weights=True))
        assert any("leaves none of 100 steps" in text for text in warnings) == is_all


def test_rate_rises_to_the_peak_and_falls_towards_the_minimum():
    plan = plan_stage(STAGE, num_videos=1920, processes=1, largest_micro_batch=192)
    rates = [plan.lr(step) for step in range(plan.steps)]
    assert rates[0] == 0
    assert rates[19] == rates[20] == plan.peak_lr == max(rates)
    assert rates == [*sorted(rates[:20]), *sorted(rates[20:], reverse=True)]
    assert 1e-5 * 192 / 256 < rates[-1] < 1e-4


def test_counts_of_bad_videos_survive_a_resume():
    bad = BadVideos(max_bad=1.0)
    bad.add(num_samples=5, failed_reads=[[("a", "x"), ("b", "y"), ("c", "z")]] * 5)
    assert bad.counts() == {"asked": 5, "bad": 5}  # a sample counts once, however many tries it took
    bad.check(any_failed=True)
    again = BadVideos(max_bad=0.5)
    again.restore(bad.counts(), bad.reasons)
    assert again.add(num_samples=8, failed_reads=[[("a", "x")]]) == []
    assert again.counts() == {"asked": 13, "bad": 6}


@pytest.mark.parametrize("largest", [1, 2, 3, 5, 100])
def test_mixup_gets_pairs_in_every_micro_batch(largest):
    stage = FinetuneSettings(batch_size=12, mixup=0.8)
    assert plan_stage(stage, num_videos=100, processes=1, largest_micro_batch=largest).micro_batch % 2 == 0
    with pytest.raises(RecipeError, match="in pairs"):
        plan_stage(stage, num_videos=100, processes=4, largest_micro_batch=largest)


@pytest.mark.parametrize(
    ("name", "backbone", "layer_decay"),
    [
        ("finetune_vit_base_layer_decay_0.75_wd_0.05", "vit-b", 0.75),
        ("finetune_vit_small_layer_decay_0.7_wd_0.05_scales_only", "vit-s", 0.7),
        ("pretrain_small_wd_0.05", "vit-s", 1.0),
    ],
)
def test_groups_equal_the_released_ones(golden, name, backbone, layer_decay):
    official_groups = json.loads(golden("optim.json").read_text())[name]
    kind = "pretrain" if name.startswith("pretrain") else "classifier"
    with torch.device("meta"):
        classes = 400 if kind == "classifier" else None
        model = everest.create_model(backbone, kind=kind, num_classes=classes)
    groups = grouped(model, layer_decay=layer_decay)
    assert len(groups) == len(official_groups) == len(dict(model.named_parameters()))
    for official, value in official_groups.items():
        decay, scale = groups[our_name(official, kind)]
        expected = value["lr_scale"] if isinstance(value, dict) else value
        assert scale == pytest.approx(expected, abs=1e-9), official
        if isinstance(value, dict):
            assert decay == value["weight_decay"], official


@pytest.mark.parametrize(
    ("base_lr", "new_weights", "advice"),
    [
        (1.6, True, "rate of 0.05 is 12 times the highest usual one (0.004); if little is learned, lower"),
        (1e-3, True, "(base_lr 0.001 x batch 8 / 256) is far below the usual 0.001 for training from"),
        (1e-3, False, None),  # trained weights need less
        (0.016, True, None),
        (1e-6, False, "is below the usual 1e-05; raise base_lr"),
    ],
)
def test_an_unusual_learning_rate_has_advice_of_its_own(base_lr, new_weights, advice):
    overrides = ["pretrain.batch_size=8", f"pretrain.base_lr={base_lr}", "pretrain.min_lr=0"]
    section = load_recipe("small", overrides=overrides).pretrain
    plan = plan_stage(section, num_videos=64, processes=1, largest_micro_batch=8)
    found = learning_rate_advice(plan, new_weights=new_weights)
    assert found is None if advice is None else found is not None and advice in found
