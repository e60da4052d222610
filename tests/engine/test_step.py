"""The step computes only what is read: loss and gradients are the plain formulation's, less is kept."""

from collections.abc import Callable

import pytest
import torch
from plain_step import logits, plain_block, pretraining_loss
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import everest
from everest.methods.grid import TokenSelection, num_at_most, num_kept
from everest.methods.masks import RandomSpaceTime, RunningCell, Tube
from everest.methods.strategies import AllTokens, FrameDifference, RedundancyRobust
from everest.models.block import Block
from everest.models.recomputed import ActivationLinear, NormLinear

SIZE = {"width": 48, "depth": 3, "heads": 4, "decoder_width": 32, "decoder_heads": 2, "decoder_depth": 2}


def small(kind: str, **options):
    torch.manual_seed(0)
    return everest.create_model(
        "vit-tiny", kind=kind, frames=8, size=(32, 48), tubelet=(2, 8, 8), **SIZE, **options
    )


def clips() -> Tensor:
    return torch.randn(2, 3, 8, 32, 48, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        scale = expected[name].abs().max().clamp_min(1e-6)
        assert (actual[name] - expected[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("selection", [RedundancyRobust(), Tube(), RandomSpaceTime(visible_ratio=0.2)])
def test_pretraining_is_the_plain_formulation(selection, layers):
    model = small("pretrain", selection=selection, embedding_layers=layers)
    x, noise = clips(), torch.rand(2, 96, generator=torch.Generator().manual_seed(2))
    lean, plain = model(x, noise=noise).loss, pretraining_loss(model, x, noise)
    assert lean.item() == pytest.approx(plain.item(), rel=1e-5)
    assert_equal(gradients(model, lean), gradients(model, plain))


@pytest.mark.parametrize("selection", [RedundancyRobust(keep_ratio=0.6, visible_ratio=None), AllTokens()])
def test_fine_tuning_is_the_plain_formulation(selection):
    model = small("classifier", num_classes=5, selection=selection)
    with torch.no_grad():
        model.head.weight.mul_(1000)  # it starts near zero
    x, labels = clips(), torch.tensor([1, 4])
    lean, plain = model(x), logits(model, x)
    torch.testing.assert_close(lean, plain, rtol=1e-5, atol=1e-5)
    losses = [nn.functional.cross_entropy(out, labels) for out in (lean, plain)]
    assert_equal(*(gradients(model, loss) for loss in losses))


@pytest.mark.parametrize("last", [None, 0, 1, 5, 9])
def test_a_block_can_give_its_last_tokens_only(last: int | None):
    torch.manual_seed(0)
    block, x = Block(24, 3), torch.randn(2, 9, 24)
    nn.init.normal_(block.attn.q_bias)
    nn.init.normal_(block.attn.v_bias)
    whole = plain_block(block, x)
    wanted = whole if last is None else whole[:, 9 - last :]
    torch.testing.assert_close(block(x, last=last), wanted, rtol=1e-5, atol=1e-5)


def test_gelu_and_norm_that_are_computed_again_have_their_gradients():
    torch.manual_seed(0)
    shapes = ((2, 3, 8), (8,), (8,), (4, 8), (4,))
    x, scale, shift, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    assert torch.autograd.gradcheck(ActivationLinear.apply, (x, weight, bias))
    assert torch.autograd.gradcheck(NormLinear.apply, (x, scale, shift, 1e-6, weight, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gelu_that_is_computed_again_obeys_autocast(dtype: torch.dtype):
    torch.manual_seed(0)
    x, layer = torch.randn(2, 3, 8), nn.Linear(8, 4)
    found = []
    for again in (True, False):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            hidden = leaf.to(dtype)
            out = (
                ActivationLinear.apply(hidden, layer.weight, layer.bias)
                if again
                else layer(nn.functional.gelu(hidden))
            )
        assert out.dtype == dtype
        out.float().square().sum().backward()
        found.append((out, leaf.grad, layer.weight.grad, layer.bias.grad))
    for lean, plain in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain, rtol=2e-2, atol=2e-2)


def saved_shapes(model: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """The shapes of all tensors that a forward pass keeps for the backward pass."""
    shapes: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    return shapes


def test_nothing_of_tokens_times_tokens_and_no_gelu_is_kept():
    model = small("pretrain", selection=Tube(mask_ratio=0.5))
    shapes = saved_shapes(model, clips())
    assert not [shape for shape in shapes if len(shape) >= 2 and shape[-1] == shape[-2] == 96]
    hidden = [shape for shape in shapes if shape == (2, 48, 4 * SIZE["width"])]
    assert len(hidden) == SIZE["depth"]  # the inputs of GELU only


def test_the_last_decoder_block_computes_targets_only():
    model = small("pretrain")
    x, noise = clips(), torch.rand(2, 96)
    chosen = model.select(x, noise)
    rows = []
    last = model.decoder.blocks[-1]
    handles = [
        module.register_forward_hook(lambda *a: rows.append(a[2].size(1)))
        for module in (last, last.attn.proj)
    ]
    model(x, selection=TokenSelection(chosen.visible, chosen.target))
    for handle in handles:
        handle.remove()
    assert rows == [chosen.target.size(1)] * 2


@pytest.mark.parametrize("count", [num_kept, num_at_most])
def test_the_mark_of_a_constant_is_that_of_torch(count: Callable[[int, float], int]):
    marked = torch.compiler.assume_constant_result(lambda: 0)
    assert vars(count) == vars(marked)


@pytest.mark.parametrize(
    "selection",
    [
        RedundancyRobust(),
        RandomSpaceTime(visible_ratio=0.2),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (FrameDifference(), Tube(), RunningCell())),
    ],
    ids=lambda selection: type(selection).__name__,
)
def test_forward_and_loss_are_one_graph_that_is_compiled_once(selection):
    model = small("pretrain", selection=selection)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    for step in range(3):
        x, noise = clips() + step, torch.rand(2, 96)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            out = compiled(x, noise=noise)
            out.loss.backward()
        assert out.loss.item() == pytest.approx(model(x, noise=noise).loss.item(), rel=1e-5)


@pytest.mark.parametrize("selection", [RedundancyRobust(keep_ratio=0.6, visible_ratio=None), AllTokens()])
def test_a_classifier_is_one_graph_that_is_compiled_once(selection):
    model = small("classifier", num_classes=5, selection=selection)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    for step in range(3):
        x = clips() + step
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            scores = compiled(x)
            scores.sum().backward()
        torch.testing.assert_close(scores, model(x))
