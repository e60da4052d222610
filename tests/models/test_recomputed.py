"""Attention of few tokens by plain products: torch's attention, in both directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from everest.models.block import Block
from everest.models.recomputed import FEW_TOKENS, FewTokensAttention


@given(queries=st.integers(1, 9), keys=st.integers(1, 9), seed=st.integers(0, 99))
def test_outputs_and_gradients_are_those_of_torch(queries: int, keys: int, seed: int):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.double, requires_grad=True) for n in (queries, keys, keys))
    grad = torch.randn(2, 3, queries, 4, dtype=torch.double)
    own, theirs = FewTokensAttention.apply(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(own, theirs)
    found, expected = (torch.autograd.grad(out, (q, k, v), grad) for out in (own, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tokens", [FEW_TOKENS, FEW_TOKENS + 1])
def test_more_tokens_are_left_to_torch(tokens: int):
    block, x = Block(32, 2), torch.randn(1, tokens, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        block(x).sum().backward()
    operations = {str(operation) for operation in counter.get_flop_counts()["Global"]}
    assert any("scaled_dot_product" in name for name in operations) == (tokens > FEW_TOKENS)
