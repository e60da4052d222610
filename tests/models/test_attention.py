"""Attention on a CPU: that of the formula, however it is cut, and nothing of its scores is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from everest.models import attention
from everest.models.attention import ProductAttention, attend

few = st.integers(1, 7)


def heads(*sizes: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A tensor of each size that needs a gradient, laid out as a block gives them: heads behind tokens."""
    torch.manual_seed(0)
    made = (torch.randn(b, n, h, d).to(dtype).transpose(1, 2) for b, h, n, d in sizes)
    return [x.requires_grad_() for x in made]


def output_and_gradients(function, inputs: list[Tensor], seed: Tensor) -> list[Tensor]:
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, seed.to(out.dtype))]


@given(batch=few, number=few, queries=few, keys=few, width=few, scores=st.integers(1, 200))
def test_it_is_torchs_attention_however_it_is_cut(batch, number, queries, keys, width, scores):
    inputs = heads(*((batch, number, n, width) for n in (queries, keys, keys)))
    seed = torch.randn(batch, number, queries, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MOST_SCORES", scores)
        ours = output_and_gradients(ProductAttention.apply, inputs, seed)
    theirs = output_and_gradients(F.scaled_dot_product_attention, inputs, seed)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scores", [5, 12, 2**20])
def test_its_gradients_are_those_of_its_output(scores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "MOST_SCORES", scores)
    assert torch.autograd.gradcheck(ProductAttention.apply, heads((2, 2, 3, 4), (2, 2, 4, 4), (2, 2, 4, 4)))


def test_no_keys_and_no_queries_are_as_torch_has_them():
    for queries, keys in ((0, 3), (3, 0), (0, 0)):
        inputs = heads(*((2, 2, n, 4) for n in (queries, keys, keys)))
        assert torch.equal(ProductAttention.apply(*inputs), F.scaled_dot_product_attention(*inputs))


@pytest.mark.parametrize("number", [156, 1100])
def test_float32_and_bfloat16_are_as_near_as_their_precision(number: int):
    inputs = heads(*[(1, 2, number, 64)] * 3)
    seed = torch.randn(1, 2, number, 64)
    exact = output_and_gradients(ProductAttention.apply, inputs, seed)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        lower = [x.detach().to(dtype).requires_grad_() for x in inputs]
        lowered = output_and_gradients(ProductAttention.apply, lower, seed)
        for found, wanted in zip(lowered, exact, strict=True):
            assert found.dtype == dtype
            assert (found - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.usefixtures("onednn_matmul")
@pytest.mark.parametrize(
    ("number", "dtype", "way"),
    [
        (39, torch.float32, "ProductAttention"),
        (39, torch.bfloat16, "ProductAttention"),
        (1100, torch.float32, "ScaledDotProductFlashAttention"),
        (1100, torch.bfloat16, "ProductAttention"),
    ],
)
def test_a_block_is_given_the_same_by_either_way(number: int, dtype: torch.dtype, way: str):
    inputs = [x.detach().requires_grad_() for x in heads(*[(1, 2, number, 64)] * 3, dtype=dtype)]
    seed = torch.randn(1, 2, number, 64)
    ours = output_and_gradients(attend, inputs, seed)
    assert ours[0].grad_fn is not None
    assert ours[0].grad_fn.name().startswith(way)
    theirs = output_and_gradients(F.scaled_dot_product_attention, inputs, seed)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine - wanted).norm() <= tolerance * wanted.norm()


def test_checkpointing_computes_the_same():
    inputs, seed = heads(*[(2, 2, 5, 4)] * 3), torch.randn(2, 2, 5, 4)
    plain = output_and_gradients(ProductAttention.apply, inputs, seed)
    again = output_and_gradients(
        lambda *x: checkpoint(ProductAttention.apply, *x, use_reentrant=False), inputs, seed
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_second_derivatives_are_refused_not_taken_for_nothing():
    inputs = heads(*[(1, 1, 3, 2)] * 3)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.functional.hessian(lambda q: ProductAttention.apply(q, *inputs[1:]).sum(), inputs[0])


def test_autocast_does_not_lower_its_scores():
    inputs = [x.detach().requires_grad_() for x in heads(*[(1, 2, 40, 16)] * 3, dtype=torch.bfloat16)]
    seed = torch.randn(1, 2, 40, 16)
    outside = output_and_gradients(ProductAttention.apply, inputs, seed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = output_and_gradients(ProductAttention.apply, inputs, seed)
    assert all(torch.equal(one, other) for one, other in zip(outside, within, strict=True))


def test_scores_are_not_kept_and_few_are_made_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "MOST_SCORES", 1000)
    q, k, v = heads(*[(2, 3, 40, 8)] * 3)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        ProductAttention.apply(q, k, v)
    assert kept == [(2, 3, 40, 8)] * 3
    flat = torch.empty(6, 40, 8)
    parts = list(attention._parts(flat, flat))
    assert len(parts) == 6 * 2
    assert all((rows.stop - rows.start) * 40 <= 1000 for _, rows in parts)


@pytest.mark.usefixtures("onednn_matmul")
def test_compiled_code_calls_the_fused_attention():
    inputs = heads(*[(1, 2, 5, 4)] * 3, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(Attending(), tuple(inputs))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.scaled_dot_product_attention.default"}


class Attending(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v)
