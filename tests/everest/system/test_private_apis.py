"""Every private interface of a library does what everest uses it for; a release that breaks one fails."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from everest.system import private_apis
from everest.system.compute import peak_bytes


@pytest.fixture(autouse=True)
def new_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_never_compile():
    inside_graph = []

    @private_apis.never_compile
    def eager(x: Tensor) -> Tensor:
        inside_graph.append(torch.compiler.is_compiling())
        return x + 1

    assert torch.compile(lambda x: 2 * eager(x), backend="eager")(torch.ones(1)) == 4
    assert inside_graph == [False]


def test_compile_as_constant():
    third = private_apis.compile_as_constant(lambda count: int(count * Fraction(1, 3)))
    compiled = torch.compile(lambda x: x[: third(10)], backend="eager", fullgraph=True)
    assert compiled(torch.arange(10)).tolist() == [0, 1, 2]


def test_limits_and_errors_of_the_compiler():
    def break_graph(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    before = torch._dynamo.config.recompile_limit
    with private_apis.keep_compiler_limits():
        private_apis.set_compiler_limits(memory_budget=0.5, graphs=before + 1)
        assert torch._functorch.config.activation_memory_budget == 0.5
        assert torch._dynamo.config.recompile_limit == before + 1
    assert torch._functorch.config.activation_memory_budget == 1.0
    assert torch._dynamo.config.recompile_limit == before
    with pytest.raises(RuntimeError) as raised:
        torch.compile(break_graph, backend="eager", fullgraph=True)(torch.ones(1))
    assert private_apis.is_compiler_error(raised.value)


@pytest.mark.parametrize("skipped", [0.0, 1.0])
def test_skip_update(skipped: float):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.sum().backward()
    private_apis.skip_update(optimizer, torch.tensor(skipped))
    optimizer.step()
    assert bool((weight == 1).all()) == bool(skipped)


def test_abort_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    private_apis.abort_process_group()
    assert not dist.is_initialized()


def test_accelerate_states():
    Accelerator(cpu=True)
    _, of_accelerator, of_gradients = private_apis.accelerate_states()
    assert of_accelerator
    assert of_gradients
    private_apis.reset_accelerate(keep_processes=False)
    assert not any(private_apis.accelerate_states()[:2])


def test_memory_of_tensors_without_values():
    model = nn.Linear(4, 8, bias=False, device="meta")

    def run() -> Tensor:
        return model(torch.ones(16, 4))

    assert peak_bytes(model, run, bytes_per_value=4, with_grad=False) == 4 * 16 * (4 + 8)
