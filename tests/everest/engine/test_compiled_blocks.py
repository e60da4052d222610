"""Compiled blocks: how many graphs they need, and that they compute the same as without compilation."""

from collections.abc import Callable, Iterator

import pytest
import torch
from timm.layers.drop import drop_path
from tiny_models import tiny
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.models.block import Block, DropPath
from everest.models.partial import freeze_and_adapt

# Torch hides it, but not where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

DEPTH = 12


class Backend:
    """Runs the graphs of torch.compile as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1

        def run(*inputs: object) -> object:
            self.runs += 1
            return graph(*inputs)

        return run

    def compile_blocks(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(dynamic=False, backend=self)

    def runs_of(self, compute: Callable[[], object]) -> int:
        """How many compiled blocks a pass runs."""
        before = self.runs
        compute()
        return self.runs - before


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch._dynamo.reset()
    limit = {"recompile_limit": 8}  # torch's own; importing timm.optim raises it
    with dynamo_config.patch(limit), functorch_config.patch():  # prepare_model changes both
        yield Backend()
    torch._dynamo.reset()


def clips(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def classifier(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = tiny("classifier", num_classes=3, depth=DEPTH, **options)
    nn.init.normal_(model.head.weight)
    return model.train()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_blocks_with_different_rates_of_drop_path_share_their_graphs(backend: Backend):
    model, x = classifier(drop_path=0.2), clips()
    backend.compile_blocks(model)
    assert backend.runs_of(lambda: gradients(model, x)) == DEPTH
    assert backend.graphs == 2  # the first block drops nothing
    with torch.no_grad():
        assert backend.runs_of(lambda: model.eval()(x)) == DEPTH
    assert backend.graphs == 4


def test_blocks_with_adapters_share_their_graphs(backend: Backend):
    model, x = classifier().double(), clips().double()  # in float32 some processors round sums otherwise
    lora = LoraSettings(rank=4, dropout=0.1, layers=("qkv", "proj", "fc1", "fc2"))
    freeze_and_adapt(model, FinetuneSettings(lora=lora))
    expected = gradients(model, x)
    backend.compile_blocks(model)
    assert backend.runs_of(lambda: gradients(model, x)) == DEPTH
    assert backend.graphs == 2  # nothing before the first block is trained
    found = gradients(model, x)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_path_scales_the_clips_that_its_noise_keeps_as_timm_does(dtype: torch.dtype):
    x, layer = torch.randn(64, 5, 7, dtype=dtype), DropPath(0.3)
    noise = torch.arange(64) / 64
    layer.uniform = noise
    found = layer(x)
    scale = drop_path(torch.ones(64, 1, 1, dtype=dtype), 0.3, training=True).max()
    expected = torch.where((noise < 0.7)[:, None, None], x * scale, torch.zeros_like(x))
    assert torch.equal(found, expected)
    assert torch.equal(layer.eval()(x), x)
