"""The computation and the memory of a step: what is counted for one clip is what each clip takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from flops_memory import LONGER_GFLOP, LONGER_MEGABYTES, QUARTER, SAVING, B, S, counts
from small_runs import json_of, run, sets
from steps import Case, clips_for, our_pass, saved_bytes_per_clip, without_numbers
from torch._subclasses.fake_tensor import FakeTensorMode

from everest.config.recipe import load_recipe
from everest.models.base import PretrainingModel
from everest.models.clip_spec import ModelSpec
from everest.models.mae import MaskedAutoencoder
from everest.models.memory import WEIGHT_BYTES, count_weights, frozen_bytes, training_bytes
from everest.models.partial import freeze_and_adapt
from everest.profiling.profile import make_stage_spec, stage_cost
from everest.system.compute import LiveBytes
from everest.tokenizer.frozen_tokenizer import FrozenTokenizer


@pytest.mark.parametrize(
    ("overrides", "gflop", "megabytes"),
    [
        ((S,), 31, 34),
        pytest.param((B,), 111, 63, marks=pytest.mark.slow),
        ((S, SAVING), None, 8.5),
        pytest.param((B, SAVING), None, 13, marks=pytest.mark.slow),
    ],
)
def test_a_step_of_everest_computes_and_keeps_no_more_than_its_goal(overrides, gflop, megabytes):
    found = counts(Case("k400", "pretrain", overrides))
    assert gflop is None or found["gflop"] <= gflop
    assert found["saved_bf16_mb"] <= megabytes


@pytest.mark.slow
def test_memory_grows_with_the_frames_and_not_with_their_square():
    short, long = (
        counts(Case("k400", "pretrain", (S, QUARTER, f"data.frames={frames}"))) for frames in (16, 128)
    )
    assert long["gflop"] / short["gflop"] <= LONGER_GFLOP
    assert 8 <= long["saved_bf16_mb"] / short["saved_bf16_mb"] <= LONGER_MEGABYTES


# ------------------------------------------------------------------------------------------------------------


MAGVIT = "tokenizer.size=magvit-b"
HALF = "tokenizer.size=magvit-b-half"
VIEWS = "pretrain.objective=views"


def spec_of(recipe: str, *overrides: str) -> ModelSpec:
    return make_stage_spec(load_recipe(recipe, overrides=list(overrides)), "pretrain")


@contextmanager
def model_without_numbers(spec: ModelSpec) -> Iterator[PretrainingModel]:
    """A model in training mode, and its tokenizer, whose weights and new tensors take no memory."""
    with torch.device("meta"):
        model = spec.without_files().build().train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        if isinstance(model, MaskedAutoencoder) and isinstance(model.tokenizer, FrozenTokenizer):
            model.tokenizer.tokenizer.to_empty(device="cpu")
        yield model


def autocast(bytes_per_value: int) -> AbstractContextManager[object]:
    """bf16 for 2 bytes, float32 for 4."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)


def peak_of_forward(spec: ModelSpec, clips: int, *, bytes_per_value: int) -> int:
    """The most bytes alive in a forward pass of pre-training, without weights; two batches are alive."""
    shape = (clips, spec.channels, spec.candidate_frames, *spec.size)
    with model_without_numbers(spec) as model, LiveBytes() as counter:
        frames, following = (torch.zeros(shape, dtype=torch.uint8) for _ in range(2))
        with autocast(bytes_per_value):
            model(frames)
        assert following.shape == shape  # alive until here, as the loader's next batch is
    return counter.peak


def coding_bytes_of(spec: ModelSpec) -> int:
    """The estimate without the weights of the tokenizer."""
    weights = WEIGHT_BYTES * count_weights(spec.tokenizer.settings).total
    return frozen_bytes(spec) - weights


FEW = "model.depth=3"  # blocks, which are alike


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("k400", (FEW,)),
        pytest.param("k400", ("model.embedding_layers=2",), marks=pytest.mark.slow),
        ("k400", ("model.embedding_layers=3", FEW)),
        pytest.param("k400", ("pretrain.camera_motion=1",), marks=pytest.mark.slow),
        pytest.param("k400", (VIEWS,), marks=pytest.mark.slow),
        pytest.param("k400", (VIEWS, "pretrain.camera_motion=1"), marks=pytest.mark.slow),
        ("k400", (VIEWS, "pretrain.camera_motion=1", "pretrain.views.number=4", FEW)),
        pytest.param("lvmae-128", ("data.frames=32",), marks=pytest.mark.slow),
        ("lvmae-128", ("data.frames=32", "pretrain.selection.score=frame-difference", FEW)),
    ],
)
def test_a_clip_takes_what_is_estimated(recipe: str, overrides: tuple[str, ...]):
    spec = spec_of(recipe, "train.checkpointing=false", *overrides)
    few, many = (peak_of_forward(spec, clips, bytes_per_value=2) for clips in (8, 16))
    assert training_bytes(spec, 2) == pytest.approx((many - few) / 8, rel=0.1)


@pytest.mark.parametrize(
    "size", [(), *(pytest.param((size,), marks=pytest.mark.slow) for size in (HALF, MAGVIT))]
)
def test_a_step_with_a_tokenizer_takes_what_is_estimated(size: tuple[str, ...]):
    spec = spec_of("lvmae-128", "train.checkpointing=false", *size)
    peak = peak_of_forward(spec, 2, bytes_per_value=4)
    assert 2 * training_bytes(spec, 4) + coding_bytes_of(spec) == pytest.approx(peak, rel=0.1)


def test_the_tokenizer_is_counted_once_and_not_with_a_cache():
    recipe = load_recipe("lvmae-128")
    state = stage_cost(recipe, "pretrain", bytes_per_value=2)["model_state"]
    assert state["tokenizer"] == frozen_bytes(spec_of("lvmae-128")) > 0
    assert "tokenizer" not in stage_cost(recipe, "finetune", bytes_per_value=2)["model_state"]
    spec = spec_of("lvmae-128")
    assert frozen_bytes(replace(spec, target=replace(spec.target, cache="tokens"))) == 0


# ------------------------------------------------------------------------------------------------------------


DEPTH = 6
BASE = ("model.backbone=vit-b", f"model.depth={DEPTH}", "finetune.drop_path=0.0")


@pytest.mark.parametrize(
    ("bytes_per_value", "settings"),
    [
        (2, ()),
        pytest.param(2, ("finetune.freeze=embedding",), marks=pytest.mark.slow),
        (2, ("finetune.freeze=first:3",)),
        (2, ("finetune.freeze=first:5", "model.pooling=class-attention")),
        (2, ("finetune.lora.rank=8",)),
        (4, ("finetune.freeze=first:3",)),
        (4, ("finetune.lora.rank=8",)),
    ],
)
def test_a_clip_takes_what_a_step_saves(bytes_per_value: int, settings: tuple[str, ...]):
    recipe = load_recipe("k400", overrides=[*BASE, *settings])
    spec, section = make_stage_spec(recipe, "finetune"), recipe.finetune
    model = spec.build().train()
    freeze_and_adapt(model, section)
    dtype = torch.float32 if bytes_per_value == 4 else torch.bfloat16
    with without_numbers(model):
        found = saved_bytes_per_clip(model, our_pass(model, dtype), clips_for(model, 2))
    clip = 10 * 3 * spec.frames * spec.size[0] * spec.size[1]  # twice as bytes, twice as float32
    estimate = training_bytes(spec, bytes_per_value, section)
    assert 0.95 <= estimate / (found + clip) <= 1.2  # more: values of a moment


def cost(*settings: str, size: int = 2):
    return stage_cost(load_recipe("k400", overrides=[*BASE, *settings]), "finetune", bytes_per_value=size)


def test_frozen_blocks_save_nothing_and_have_no_state():
    costs = [cost(f"finetune.freeze=first:{n}") for n in range(1, DEPTH)]
    bytes_of = [found["activation_bytes_per_clip"] for found in costs]
    assert len({before - after for before, after in pairwise(bytes_of)}) == 1
    whole, block = cost(), costs[0]["trained_parameters"] - costs[1]["trained_parameters"]
    assert block == 12 * 768**2 + 12 * 768  # four matrices, and vectors: the keys have no bias
    assert all(found["parameters"] == whole["parameters"] == whole["trained_parameters"] for found in costs)
    for found in costs:
        assert found["model_state"]["weights"] == 4 * found["parameters"]
        assert found["model_state"]["gradients"] == 4 * found["trained_parameters"]
        assert found["model_state"]["moments"] == 8 * found["trained_parameters"]
    head = cost("finetune.freeze=encoder")
    assert head["trained_parameters"] == 2 * 768 + 768 * 400 + 400
    assert head["activation_bytes_per_clip"] < costs[-1]["activation_bytes_per_clip"]


@pytest.mark.parametrize(("size", "copies"), [(2, 0), (4, DEPTH * 4 * 768**2)])
def test_adapters_are_counted_with_the_matrices_that_float32_keeps(size: int, copies: int):
    found, whole = cost("finetune.lora.rank=8", size=size), cost(size=size)
    adapters = DEPTH * 8 * ((768 + 3 * 768) + (768 + 768))  # qkv and proj
    assert found["parameters"] == whole["parameters"] + adapters
    assert found["trained_parameters"] == adapters + 2 * 768 + 768 * 400 + 400
    assert found["model_state"]["weights"] == 4 * (found["parameters"] + copies)
    assert found["model_state"]["moments"] == 8 * found["trained_parameters"]


def test_profile_shows_the_trained_parameters_of_partial_training():
    small = sets("data.size=32", "model.tubelet=[2, 8, 8]", "model.depth=2", "data.num_classes=2")
    options = ["profile", "--backbone", "vit-tiny", *small, "--set", "finetune.lora.rank=4"]
    stages = json_of(*options)["stages"]
    assert stages["pretrain"]["trained_parameters"] == stages["pretrain"]["parameters"]
    assert stages["finetune"]["trained_parameters"] < stages["finetune"]["parameters"] / 20
    assert "trained_parameters" not in stages["eval"]
    assert "trained parameters" in run(*options)


SELECTION = "pretrain.selection={strategy: tube, mask_ratio: 0.9}"
CAMERA = "pretrain.camera_motion=1"
TENTH, QUARTER_OF_ALL = (
    f"pretrain.views={{view_ratio: {fraction}, uniform: 1.0}}" for fraction in (0.1, 0.25)
)
METHODS = {  # as docs/methods.md calls them
    "EVEREST": (),
    "VideoMAE, 90 %": (SELECTION,),
    "views of a tenth of the tokens": (VIEWS, TENTH),
    "the same with the task of the camera": (VIEWS, TENTH, CAMERA),
    "views of a quarter of the tokens": (VIEWS, QUARTER_OF_ALL),
    "the same with the task of the camera, as in `views`": (VIEWS, QUARTER_OF_ALL, CAMERA),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_page_of_methods_shows_the_costs_of_views_next_to_pixels(method: str):
    recipe = load_recipe("ucf101", overrides=["model.backbone=vit-s", *METHODS[method]])
    found = stage_cost(recipe, "pretrain", bytes_per_value=4)
    activations, gmacs = found["activation_bytes_per_clip"] / 1e6, found["gmacs"]
    row = f"\n| {method} | {found['tokens']['visible']} | {gmacs:.1f} | {activations:.0f} MB |"
    assert row in (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
