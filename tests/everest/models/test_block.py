"""The parts of a block: attention and MLP, rotary positions, SwiGLU, quick GELU, a norm before the blocks."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
import torch.nn.functional as F
from timm.layers.activations import GELUTanh, QuickGELU
from tiny_models import PARTS, grouped, randomized, tiny
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.utils.flop_counter import FlopCounterMode

from everest.config.model_settings import BACKBONES
from everest.config.recipe import load_recipe
from everest.config.settings import ModelSettings
from everest.config.stage_settings import FinetuneSettings
from everest.config.values import Rotary
from everest.methods.grid import TokenGrid
from everest.models.block import Activation, Block, NormedSwiglu, RecomputedLinear
from everest.models.cost import NORM_OPERATIONS, count_macs, count_tokens
from everest.models.partial import freeze_and_adapt
from everest.models.positions import RotaryPositions
from everest.profiling.profile import make_stage_spec

GRID = TokenGrid(t=3, h=2, w=4)
ACTIVATIONS = {
    "exact": F.gelu,
    "tanh": GELUTanh(),
    "quick": QuickGELU(),
    "swiglu": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
}


def test_the_score_of_two_tokens_depends_on_their_distance_only():
    """With two channels for each coordinate; of more, two channels of a point have two angles."""
    positions = RotaryPositions(TokenGrid(t=9, h=1, w=1), 6)
    rotation = positions(torch.arange(9)[None])
    q, k = (torch.randn(6).expand(1, 1, 9, 6) for _ in range(2))
    scores = (rotation.rotate(q) @ rotation.rotate(k).mT)[0, 0]  # (9, 9)
    torch.testing.assert_close(scores[2:, 2:], scores[:-2, :-2])
    assert scores.std() > 1e-3


def plain(block: Block, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A block without fused functions, with turned queries and keys (B, heads, K, E)."""
    attn = block.attn
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    parts = F.linear(block.norm1(x), attn.qkv.weight, bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)

    def rotated(x: Tensor) -> Tensor:
        crossed = torch.empty_like(x)
        crossed[..., ::2], crossed[..., 1::2] = -x[..., 1::2], x[..., ::2]
        return x * cos + crossed * sin

    fractions = (rotated(q) @ rotated(k).mT / q.size(-1) ** 0.5).softmax(dim=-1)
    x = x + attn.proj((fractions @ v).transpose(1, 2).flatten(2))
    hidden = ACTIVATIONS[block.mlp.activation](block.mlp.fc1(block.norm2(x)))
    return x + block.mlp.fc2(hidden if block.mlp.norm is None else block.mlp.norm(hidden))


@pytest.mark.parametrize("mlp", ["exact", "tanh", "quick", "swiglu", "normed-swiglu"])
@pytest.mark.parametrize("rotary", ["none", "dinov3"])
@pytest.mark.parametrize("last", [None, 1, 5])
def test_a_block_is_the_plain_formulation(mlp: Activation | NormedSwiglu, rotary: Rotary, last: int | None):
    """Its outputs and gradients."""
    torch.manual_seed(0)
    block = randomized(Block(32, 2, mlp_width=40, rotary=True, mlp=mlp).double())
    rotation = RotaryPositions(GRID, 16, rotary).double()(torch.randint(24, (2, 9)))
    x = torch.randn(2, 9, 32, dtype=torch.float64, requires_grad=True)
    found, expected = block(x, num_outputs=last, rotation=rotation), plain(block, x, *rotation)
    expected = expected if last is None else expected[:, -last:]
    torch.testing.assert_close(found, expected)
    inputs, weight = [x, *block.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for own, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(own, reference)
    assert dict(block.named_parameters())["attn.k_bias"].requires_grad


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
    spec = make_stage_spec(load_recipe("small", overrides=["model.mlp_width=100"]), "finetune")
    size, tokens = spec.model.backbone_size, count_tokens(spec).visible
    without = make_stage_spec(load_recipe("small"), "finetune")
    linear = count_macs(without).linear - count_macs(spec).linear
    assert linear == size.depth * tokens * size.width * 2 * (4 * size.width - 100)
    wide = spec.build().encoder.blocks[0].mlp
    assert wide.fc1.weight.shape == (100, size.width)
    assert ModelSettings(backbone="vit-g").backbone_size.mlp == 6144
    assert ModelSettings(backbone="vit-g", width=64).backbone_size.mlp == 256
    assert ModelSettings(backbone="vit-g", width=64, mlp_width=10).backbone_size.mlp == 10
    assert all(size.mlp == 4 * size.width for name, size in BACKBONES.items() if name != "vit-g")


OTHER_MLPS = [
    pytest.param(changes, marks=pytest.mark.slow)
    for changes in ({"mlp": "swiglu"}, {"mlp": "plain", "gelu": "quick"})
]


@pytest.mark.parametrize("changes", [{}, *OTHER_MLPS])
def test_a_compiled_model_is_one_graph_with_the_same_gradients(changes: dict[str, str]):
    torch.manual_seed(0)
    model = tiny("classifier", num_classes=3, **{**PARTS, **changes})
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    clips, parameters = torch.randn(2, 3, 8, 32, 32), list(model.parameters())
    found = [torch.autograd.grad(run(clips).square().sum(), parameters) for run in (compiled, model)]
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("changes", [{"registers": 2}, {"rotary": "dinov3", "class_token": False}])
def test_time_indices_with_all_tokens_are_encoded_without_a_mask_to_the_same_tokens(
    changes: dict[str, object],
):
    model = tiny("classifier", num_classes=3, **{**PARTS, "attention": "slice", **changes})
    encoder = randomized(model).encoder
    clips, ids = torch.randn(2, 3, 8, 32, 32), torch.arange(encoder.grid.num_tokens).expand(2, -1)
    with torch.no_grad():
        masked = encoder.train()(clips, ids)
        torch.testing.assert_close(encoder.eval()(clips, ids), masked)


@pytest.mark.parametrize("mlp", ["plain", "swiglu", "normed-swiglu"])
@pytest.mark.parametrize("norm_before", [False, True])
def test_the_cost_is_that_of_the_operations(mlp: str, norm_before: bool):
    small = ["model.backbone=vit-tiny", "model.depth=2", "data.size=32", "finetune.selection.strategy=all"]
    own = [f"model.mlp={mlp}", "model.rotary=dinov3", f"model.norm_before={str(norm_before).lower()}"]
    spec = make_stage_spec(load_recipe("k400", overrides=[*small, *own]), "finetune")
    model, macs = spec.build().eval(), count_macs(spec)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, *(spec.frames, *spec.size)))
    assert counter.get_total_flops() == 2 * (macs.embedding + macs.linear + macs.attention)
    tokens = count_tokens(spec).visible
    normed = 2 * tokens * (2 * 192 + 4 * 192 * (mlp == "normed-swiglu"))
    normed += tokens * 192 * norm_before + 192
    assert macs.layer_norm == NORM_OPERATIONS * normed


def test_the_norm_before_the_blocks_belongs_to_the_embedding():
    model = tiny("classifier", num_classes=3, **PARTS)
    groups = grouped(model, layer_decay=0.5)
    assert groups["encoder.norm_before.weight"][1] == groups["encoder.patch_embed.proj.weight"][1] < 1
    assert groups["encoder.norm_before.weight"][0] == 0
    freeze_and_adapt(model, FinetuneSettings(freeze="embedding"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("norm_before" in name or "registers" in name for name in trained)
    assert "encoder.blocks.0.mlp.norm.weight" in trained


class Quantized(quantized.Linear):
    """Dynamic quantization of a `RecomputedLinear`."""

    @classmethod
    def from_float(cls, mod: nn.Linear, **options: bool) -> Quantized:
        plain = nn.Linear(mod.in_features, mod.out_features)
        plain.load_state_dict({"bias": torch.zeros(mod.out_features), **mod.state_dict()})
        plain.qconfig = mod.qconfig
        return super().from_float(plain, **options)

    def forward(
        self, x: Tensor, origin: object = None, bias: Tensor | None = None, num_queries: int | None = None
    ) -> Tensor:
        product = super().forward(x)
        return product if bias is None else product + bias


@pytest.mark.parametrize("class_token", [False, True])
def test_a_forward_hook_adapts_a_linear_layer_as_a_change_of_its_weight(class_token: bool):
    model = randomized(tiny("classifier", num_classes=3, class_token=class_token))
    layers = [layer for layer in model.encoder.blocks.modules() if isinstance(layer, nn.Linear)]
    clips, changes = torch.randn(2, 3, 8, 32, 32), [0.1 * torch.randn_like(layer.weight) for layer in layers]
    hooks = [
        layer.register_forward_hook(lambda _, given, out, change=change: out + given[0] @ change.T)
        for layer, change in zip(layers, changes, strict=True)
    ]
    adapted = model(clips)
    for layer, hook, change in zip(layers, hooks, changes, strict=True):
        hook.remove()
        layer.weight.data += change
    assert len(layers) == 2 * 4
    torch.testing.assert_close(model(clips), adapted)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
def test_dynamic_quantization_acts_on_the_linear_layers_of_a_block():
    model, clips = tiny("encoder").eval(), torch.randn(2, 3, 8, 32, 32)
    mapping = {nn.Linear: quantized.Linear, RecomputedLinear: Quantized}
    coded = quantize_dynamic(model, set(mapping), mapping=mapping)
    assert sum(isinstance(module, quantized.Linear) for module in coded.encoder.blocks.modules()) == 2 * 4
    expected = model(clips)
    assert 0 < (coded(clips) - expected).norm() < 0.05 * expected.norm()
