"""The parts that encoders of images have: SwiGLU, quick GELU, a norm before the blocks, rotary places."""

from __future__ import annotations

import math

import pytest
import torch
from test_rotary import assert_plain
from tiny_models import PARTS, TINY, grouped, randomized, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from everest.config.recipe import load_recipe
from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.config.values import Gelu, MlpKind
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid
from everest.models.block import Block
from everest.models.cost import NORM_OPERATIONS, count_macs, count_tokens
from everest.models.partial import LowRank, add_adapters, choose_trained, merged
from everest.models.positions import RotaryPositions, place_angles
from everest.models.recomputed import RecomputedSwiglu
from everest.profiling.profile import stage_spec

GRID = TokenGrid(t=2, h=2, w=4)
MLPS: list[tuple[MlpKind, Gelu]] = [
    *(("plain", "tanh"), ("plain", "quick"), ("swiglu", "exact"), ("normed-swiglu", "exact")),
]


@pytest.mark.parametrize(("mlp", "gelu"), MLPS)
@pytest.mark.parametrize("last", [None, 5])
def test_a_block_is_the_plain_formulation(mlp: MlpKind, gelu: Gelu, last: int | None):
    torch.manual_seed(0)
    block = randomized(Block(32, 2, mlp_width=40, rotary=True, mlp=mlp, gelu=gelu).double())
    assert isinstance(block, Block)
    assert_plain(block, RotaryPositions(GRID, 16, "dinov3").double()(torch.randint(16, (2, 9))), last)


def test_swiglu_that_is_computed_again_has_its_gradient():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RecomputedSwiglu.apply, (x,))


def test_angles_of_places():
    """Of token 2 * 4 + 1 + 2 in a grid of 2 rows and 4 columns: row 0, column 3, whatever the slice."""
    half, tenth = [3.0, 0.3], 0.1  # of the columns, with rates 1 and 1 / 10 of base 100
    angle = place_angles(GRID, 8, "rope-vit")
    assert angle.shape == (16, 8)
    assert torch.equal(angle[3], angle[3 + 8])
    assert angle[3].tolist() == pytest.approx([0, 0, 0, 0, half[0], half[0], half[1], half[1]])
    scaled = place_angles(GRID, 8, "eva02:8")[7]  # row 1, column 3
    assert scaled.tolist() == pytest.approx([4, 4, 0.04, 0.04, 6, 6, 0.06, 0.06])
    shifted = place_angles(GRID, 8, "pe:8")[7]
    assert shifted.tolist() == pytest.approx([8, 8, 0.08, 0.08, 8, 8, 0.08, 0.08])
    row, column = math.pi, 1.5 * math.pi
    expected = [row, row, tenth * row, tenth * row, column, column, tenth * column, tenth * column]
    assert place_angles(GRID, 8, "dinov3")[7].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("changes", [{}, {"mlp": "swiglu"}, {"mlp": "plain", "gelu": "quick"}])
def test_a_compiled_model_is_one_graph_with_the_same_gradients(changes: dict[str, str]):
    torch.manual_seed(0)
    model = tiny("classifier", num_classes=3, **{**PARTS, **changes})
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    clips, parameters = torch.randn(2, 3, 8, 32, 32), list(model.parameters())
    found = [torch.autograd.grad(run(clips).square().sum(), parameters) for run in (compiled, model)]
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("mlp", ["plain", "swiglu", "normed-swiglu"])
@pytest.mark.parametrize("norm_before", [False, True])
def test_the_cost_is_that_of_the_operations(mlp: str, norm_before: bool):
    small = ["model.backbone=vit-tiny", "model.depth=2", "data.size=32", "finetune.selection.strategy=all"]
    own = [f"model.mlp={mlp}", "model.rotary=dinov3", f"model.norm_before={str(norm_before).lower()}"]
    spec = stage_spec(load_recipe("k400", overrides=[*small, *own]), "finetune")
    model, macs = spec.build().eval(), count_macs(spec)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, *(spec.frames, *spec.size)))
    assert counter.get_total_flops() == 2 * (macs.embedding + macs.linear + macs.attention)
    tokens = count_tokens(spec).visible
    normed = 2 * tokens * (2 * 192 + 4 * 192 * (mlp == "normed-swiglu"))
    normed += tokens * 192 * norm_before + 192
    assert macs.layer_norm == NORM_OPERATIONS * normed


def test_adapters_learn_and_are_merged():
    torch.manual_seed(0)
    model, clips = tiny("encoder", **PARTS).eval(), torch.randn(2, 3, 8, 32, 32)
    before = model(clips)
    add_adapters(model.encoder.blocks, LoraSettings(rank=2, layers=("qkv", "proj", "fc1", "fc2")))
    assert torch.equal(model(clips), before)
    adapters = [module for module in model.modules() if isinstance(module, LowRank)]
    for adapter in adapters:
        nn.init.normal_(adapter.b)
    after = model(clips)
    after.square().sum().backward()
    assert all(adapter.a.grad is not None for adapter in adapters)
    plain_model = tiny("encoder", **PARTS).eval()
    plain_model.load_state_dict(merged(model, model.state_dict()))
    torch.testing.assert_close(plain_model(clips), after)


def test_the_norm_before_the_blocks_belongs_to_the_embedding():
    model = tiny("classifier", num_classes=3, **PARTS)
    groups = grouped(model, layer_decay=0.5)
    assert groups["encoder.norm_before.weight"][1] == groups["encoder.patch_embed.proj.weight"][1] < 1
    assert groups["encoder.norm_before.weight"][0] == 0
    choose_trained(model, FinetuneSettings(freeze="embedding"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("norm_before" in name or "registers" in name for name in trained)
    assert "encoder.blocks.0.mlp.norm.weight" in trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": "eva02"}, "model.rotary: must be none, dinov3, rope-vit, eva02:N or pe:N"),
        ({"rotary": "dinov3", "width": 36, "heads": 6}, "model.heads: 6 heads of 6 channels; rotary needs"),
        ({"rotary": "dinov3", "positions": "rotary"}, "model.rotary: turns by places, and so does"),
    ],
)
def test_what_contradicts_is_refused(changes: dict[str, object], message: str):
    overrides = [f"model.{key}={value}" for key, value in {**TINY, **changes}.items()]
    with pytest.raises(RecipeError, match=message):
        load_recipe("small", overrides=overrides)
