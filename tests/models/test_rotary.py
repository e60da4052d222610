"""Rotary positions and the width of the MLP in every kind of model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers.activations import GELUTanh, QuickGELU
from tiny_models import PARTS, TINY, randomized, tiny
from torch import Tensor

from everest.config.recipe import load_recipe
from everest.config.settings import ModelSettings
from everest.config.sizes import BACKBONES
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid
from everest.models.block import Block
from everest.models.cost import count_macs, count_tokens
from everest.models.positions import RotaryPositions, rotary_angles
from everest.profiling.profile import stage_spec

GRID = TokenGrid(t=3, h=2, w=4)
ACTIVATIONS = {
    "exact": F.gelu,
    "tanh": GELUTanh(),
    "quick": QuickGELU(),
    "swiglu": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
}


def test_angles_are_of_slice_row_and_column():
    angle = rotary_angles(GRID, 16)  # four channels for each, four are left over
    assert angle.shape == (24, 16)
    token = angle[2 * 8 + 1 * 4 + 3]  # slice 2, row 1, column 3
    expected = [2, 0.02, 2, 0.02, 1, 0.01, 1, 0.01, 3, 0.03, 3, 0.03, 0, 0, 0, 0]
    assert token.tolist() == pytest.approx(expected)
    assert not angle[0].any()


def test_the_score_of_two_tokens_depends_on_their_distance_only():
    """With two channels for each coordinate; of more, two channels of a point have two angles."""
    positions = RotaryPositions(TokenGrid(t=9, h=1, w=1), 6)
    rotation = positions(torch.arange(9)[None])
    q, k = (torch.randn(6).expand(1, 1, 9, 6) for _ in range(2))
    scores = (rotation.turn(q) @ rotation.turn(k).mT)[0, 0]  # (9, 9)
    torch.testing.assert_close(scores[2:, 2:], scores[:-2, :-2])
    assert scores.std() > 1e-3


def plain(block: Block, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A block without fused functions, with turned queries and keys (B, heads, K, E)."""
    attn = block.attn
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    parts = F.linear(block.norm1(x), attn.qkv.weight, bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)

    def turned(x: Tensor) -> Tensor:
        crossed = torch.empty_like(x)
        crossed[..., ::2], crossed[..., 1::2] = -x[..., 1::2], x[..., ::2]
        return x * cos + crossed * sin

    shares = (turned(q) @ turned(k).mT / q.size(-1) ** 0.5).softmax(dim=-1)
    x = x + attn.proj((shares @ v).transpose(1, 2).flatten(2))
    hidden = ACTIVATIONS[block.mlp.activation](block.mlp.fc1(block.norm2(x)))
    return x + block.mlp.fc2(hidden if block.mlp.norm is None else block.mlp.norm(hidden))


def assert_plain(block: Block, rotation: tuple[Tensor, Tensor], last: int | None) -> None:
    """The outputs and gradients of a block, 32 wide, are those of the plain formulation."""
    x = torch.randn(2, 9, 32, dtype=torch.float64, requires_grad=True)
    found, expected = block(x, last=last, rotation=rotation), plain(block, x, *rotation)
    expected = expected if last is None else expected[:, -last:]
    torch.testing.assert_close(found, expected)
    inputs, weight = [x, *block.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for own, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("last", [None, 1, 5])
def test_a_block_is_the_plain_formulation(last: int | None):
    torch.manual_seed(0)
    block = Block(32, 2, mlp_width=40, rotary=True).double()
    for bias in (block.attn.q_bias, block.attn.k_bias, block.attn.v_bias):
        torch.nn.init.normal_(bias)
    assert_plain(block, RotaryPositions(GRID, 16).double()(torch.randint(24, (2, 9))), last)
    assert dict(block.named_parameters())["attn.k_bias"].requires_grad


@pytest.mark.parametrize("kind", ["pretrain", "classifier", "encoder"])
def test_a_token_alone_does_not_show_its_place_and_two_show_their_distance(kind: str):
    options = {"num_classes": 3} if kind == "classifier" else {}
    torch.manual_seed(0)
    model = tiny(kind, positions="rotary", mlp_width=40, **options).eval()
    clip = torch.randn(1, 3, 2, 8, 8).repeat(1, 1, 4, 4, 4)  # all tokens but the first are equal
    clip[:, :, :2, :8, :8] = torch.randn(1, 3, 2, 8, 8)
    randomized(model)
    with torch.no_grad():
        alone = [model.encode(clip, torch.tensor([[token]])) for token in (1, 63)]
        assert torch.equal(*alone)
        near, *farther = (model.encode(clip, torch.tensor([[0, token]])) for token in (1, 4, 16))
        assert all((near - tokens).abs().max() > 1e-3 for tokens in farther)


@pytest.mark.parametrize("options", [{"positions": "rotary"}, PARTS], ids=["rotary", "parts of image models"])
def test_autocast_keeps_the_sum_of_blocks_in_float32(options: dict[str, object]):
    model = tiny("pretrain", **options)
    clips, seen = torch.randn(2, 3, 8, 32, 32), []
    for stack in (model.encoder, model.decoder):
        stack.blocks[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(clips).loss
    loss.backward()
    assert seen == [torch.float32, torch.float32]
    assert model.encoder.blocks[0].attn.k_bias.grad.any()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_the_width_of_the_mlp_is_counted_and_that_of_its_backbone_unless_set():
    spec = stage_spec(load_recipe("small", overrides=["model.mlp_width=100"]), "finetune")
    size, tokens = spec.model.backbone_size, count_tokens(spec).visible
    without = stage_spec(load_recipe("small"), "finetune")
    linear = count_macs(without).linear - count_macs(spec).linear
    assert linear == size.depth * tokens * size.width * 2 * (4 * size.width - 100)
    wide = spec.build().encoder.blocks[0].mlp
    assert wide.fc1.weight.shape == (100, size.width)
    assert ModelSettings(backbone="vit-g").backbone_size.mlp == 6144
    assert ModelSettings(backbone="vit-g", width=64).backbone_size.mlp == 256
    assert ModelSettings(backbone="vit-g", width=64, mlp_width=10).backbone_size.mlp == 10
    assert all(size.mlp == 4 * size.width for name, size in BACKBONES.items() if name != "vit-g")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 20, "heads": 5}, "model.heads: 5 heads of 4 channels; rotary positions need an even num"),
        ({"width": 21, "heads": 3}, "model.heads: 3 heads of 7 channels; rotary"),
        ({"decoder_width": 8, "decoder_heads": 2}, "model.decoder_heads: 2 heads of 4 channels; rotary"),
    ],
)
def test_heads_that_are_too_narrow_are_refused(changes: dict[str, int], message: str):
    values = {**TINY, **changes, "positions": "rotary"}
    overrides = [f"model.{key}={value}" for key, value in values.items()]
    with pytest.raises(RecipeError, match=message):
        load_recipe("small", overrides=overrides)
    assert replace(ModelSettings(), **changes).positions == "flat"
