"""The step computes only what is read: loss and gradients are the plain formulation's, less is kept."""

import pytest
import torch
from plain_step import logits, pretraining_loss
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import everest
from everest.methods.strategies import (
    AllTokens,
    FrameDifference,
    RandomSpaceTime,
    RedundancyRobust,
    RunningCell,
    Tube,
)

SIZE = {"width": 48, "depth": 3, "heads": 4, "decoder_width": 32, "decoder_heads": 2, "decoder_depth": 2}


def small(kind: str, **options):
    torch.manual_seed(0)
    return everest.create_model(
        "vit-tiny", kind=kind, frames=8, size=(32, 48), tubelet=(2, 8, 8), **{**SIZE, **options}
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


def saved_shapes(model: nn.Module, x: Tensor) -> list[torch.Size]:
    """The shapes of all tensors that a forward pass keeps for the backward pass, each kept once."""
    kept: dict[tuple[int, torch.Size], Tensor] = {}  # they live, so none has the address of another

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr(), tensor.shape] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x).loss
        assert loss.requires_grad  # the graph lives until here
    return [tensor.shape for tensor in kept.values()]


def test_nothing_of_tokens_times_tokens_and_no_gelu_is_kept():
    model = small("pretrain", selection=Tube(mask_ratio=0.5))
    shapes = saved_shapes(model, clips())
    assert not [shape for shape in shapes if len(shape) >= 2 and shape[-1] == shape[-2] == 96]
    hidden = [shape for shape in shapes if shape == (2, 48, 4 * SIZE["width"])]
    assert len(hidden) == SIZE["depth"]  # the inputs of GELU only


@pytest.mark.parametrize(
    "selection",
    [
        RedundancyRobust(),
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in (RandomSpaceTime(visible_ratio=0.2), FrameDifference(), Tube(), RunningCell())
        ),
    ],
    ids=lambda selection: type(selection).__name__,
)
def test_forward_and_loss_are_one_graph_that_is_compiled_once(selection):
    model = small("pretrain", selection=selection, depth=1, decoder_depth=1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    for step in range(3):
        x, noise = clips() + step, torch.rand(2, 96)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            out = compiled(x, noise=noise)
            out.loss.backward()
        assert out.loss.item() == pytest.approx(model(x, noise=noise).loss.item(), rel=1e-5)
