"""Estimates of memory are the peaks of the tensors that are alive in a step, counted without numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from live_bytes import LiveBytes, autocast, model_without_numbers, norms_in_float32, peak_of_forward
from torch._subclasses.fake_tensor import FakeTensorMode

from everest.config.recipe import load_recipe
from everest.config.stage_settings import TokenTargetSettings
from everest.models.memory import WEIGHT_BYTES, count_weights, tokenizer_bytes, training_bytes
from everest.models.spec import ModelSpec
from everest.profiling.profile import stage_cost, stage_spec
from everest.tokenizer.targets import FrozenTokenizer

MAGVIT = "tokenizer.size=magvit-b"
HALF = "tokenizer.size=magvit-b-half"


def spec_of(recipe: str, *overrides: str) -> ModelSpec:
    return stage_spec(load_recipe(recipe, overrides=list(overrides)), "pretrain")


def coding_bytes_of(spec: ModelSpec, bytes_per_value: int) -> int:
    """The estimate without the weights of the tokenizer."""
    assert spec.tokenizer is not None
    weights = WEIGHT_BYTES * count_weights(spec.tokenizer.settings).total
    return tokenizer_bytes(spec, bytes_per_value) - weights


def test_the_counter_sees_tensors_come_and_go():
    with FakeTensorMode(), LiveBytes() as counter:
        first = torch.zeros(1000)
        second = first + 1
        assert counter.now == 8000
        del first
        third = second.view(10, 100)
        assert (counter.now, counter.most) == (4000, 8000)
        del second, third
        assert counter.now == 0


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("k400", ()),
        ("k400", ("model.embedding_layers=2",)),
        ("k400", ("model.embedding_layers=3",)),
        ("lvmae-128", ("data.frames=32",)),
        ("lvmae-128", ("data.frames=32", "pretrain.selection.score=frame-difference")),
    ],
)
def test_a_clip_takes_what_is_estimated(recipe: str, overrides: tuple[str, ...]):
    spec = spec_of(recipe, "train.checkpointing=false", *overrides)
    few, many = (peak_of_forward(spec, clips, bytes_per_value=2) for clips in (8, 16))
    assert training_bytes(spec, 2) == pytest.approx((many - few) / 8, rel=0.1)


@pytest.mark.parametrize("size", [(), (HALF,), (MAGVIT,)])
def test_a_step_with_a_tokenizer_takes_what_is_estimated(size: tuple[str, ...]):
    spec = spec_of("lvmae-128", "train.checkpointing=false", *size)
    peak = peak_of_forward(spec, 2, bytes_per_value=4)
    assert 2 * training_bytes(spec, 4) + coding_bytes_of(spec, 4) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("size", [(), (HALF,), (MAGVIT,), ("tokenizer.size=tiny", "model.tubelet=[2, 4, 4]")])
@pytest.mark.parametrize("bytes_per_value", [2, 4])
def test_coding_takes_what_is_estimated_for_any_number_of_clips(size, bytes_per_value: int, monkeypatch):
    norms_in_float32(monkeypatch)
    spec = spec_of("lvmae-128", "data.frames=32", *size)
    peaks = []
    with model_without_numbers(spec) as model:
        frozen = model.learned
        assert isinstance(frozen, FrozenTokenizer)
        clip = torch.zeros(1, 3, spec.frames, *spec.size, dtype=torch.uint8)
        at_once = frozen.tokenizer.clips_at_once(clip)
        for clips in (at_once, 4 * at_once):
            frames = clip.repeat(clips, 1, 1, 1, 1)
            with LiveBytes() as counter, autocast(bytes_per_value):
                frozen.scores(frames)
                frozen.latent(frames)
            peaks.append(counter.most)
    few, many = peaks
    assert coding_bytes_of(spec, bytes_per_value) == pytest.approx(few, rel=0.1)
    assert many == pytest.approx(few, rel=0.02)  # more results only


def test_the_tokenizer_is_counted_once_and_not_with_a_cache():
    recipe = load_recipe("lvmae-128")
    state = stage_cost(recipe, "pretrain", value_bytes=2).model_state
    assert state["tokenizer"] == tokenizer_bytes(spec_of("lvmae-128"), 2) > 0
    assert "tokenizer" not in stage_cost(recipe, "finetune", value_bytes=2).model_state
    spec = spec_of("lvmae-128")
    assert isinstance(spec.target, TokenTargetSettings)
    assert tokenizer_bytes(replace(spec, target=replace(spec.target, cache="tokens")), 2) == 0
